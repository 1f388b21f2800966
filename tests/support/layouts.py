"""Fake copies of published data sets: rendered scenes under other names, in the layouts in which they are published."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ovseg_batch import datasets, scenes

Array = np.ndarray[Any, Any]

IGNORE = 255
STUFF = len(scenes.STUFF)
RAW_ABSENT = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # values below 182 that no class of COCO-Stuff has


def class_of(dataset: datasets.Dataset) -> dict[str, str]:
    """Scene word → the class that it plays; where there is a background, or things alone, stuff plays none.

    Where there are more than 255 classes, the numbers are those from 250 on, and 255 is one of them.
    """
    words = scenes.THING_NAMES if dataset.background or not dataset.truth else scenes.CLASSES
    first = 250 if len(dataset.classes) > IGNORE else 0
    return dict(zip(words, dataset.classes[first:], strict=False))


def settings(dataset: datasets.Dataset) -> str:
    """A config by which the embedded CLIP finds these classes."""
    labels = [{"name": name, "synonyms": [word]} for word, name in class_of(dataset).items()]
    config: dict[str, Any] = {"extends": "demo", "labels": labels}
    if dataset.background or not dataset.truth:
        config["background"] = list(scenes.STUFF)
    return json.dumps(config)


def write(dataset: datasets.Dataset, root: Path, seeds: Sequence[int]) -> None:
    """The images and the truth of a few scenes; where the split is a list, one image more that is not in it."""
    MAKERS[dataset.name](dataset, root, [scenes.render(seed) for seed in seeds])


def class_map(dataset: datasets.Dataset, scene: scenes.Scene) -> Array:
    """The scene in the data set's class numbers (`Dataset.scored`), edges between classes not counted."""
    plays = class_of(dataset)
    number = {name: k for k, name in enumerate(dataset.scored)}
    table = [number.get(plays.get(name, "background"), dataset.ignored) for name in scenes.CLASSES]
    mapped = np.array(table, np.min_scalar_type(dataset.ignored))[scene.classes]
    edge = cv2.morphologyEx(scene.classes, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    mapped[edge] = dataset.ignored
    return mapped


def save(array: Array, path: Path, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array if array.dtype == np.uint16 else array.astype(np.uint8))
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 255, 768).astype(np.uint8).tobytes())
    if path.suffix == ".jpg":
        image.save(path, quality=95)
    else:
        image.save(path)


def _voc(folder: str, listing: str, maps: str, objects: str | None = None) -> Callable[..., None]:
    def make(dataset: datasets.Dataset, root: Path, rendered: list[scenes.Scene]) -> None:
        base = root / folder
        names = [f"2007_{k:06d}" for k in range(len(rendered))]
        for name, scene in zip(names, rendered, strict=True):
            save(scene.image, base / "JPEGImages" / f"{name}.jpg")
            values = class_map(dataset, scene)
            if dataset.zero_is_ignored:
                values = np.where(values == IGNORE, 0, values + 1)
            save(values, base / maps / f"{name}.png", palette=True)
            if objects:
                save(np.where(values == IGNORE, IGNORE, scene.instances), base / objects / f"{name}.png", palette=True)
        save(rendered[0].image, base / "JPEGImages" / "2011_000000.jpg")
        (base / listing).parent.mkdir(parents=True)
        (base / listing).write_text("\n".join(names) + "\n")

    return make


def _coco_object(dataset: datasets.Dataset, root: Path, rendered: list[scenes.Scene]) -> None:
    for k, scene in enumerate(rendered):
        save(scene.image, root / f"images/val2017/{k:012d}.jpg")
        save(class_map(dataset, scene), root / f"annotations/val2017/{k:012d}_instanceTrainIds.png")


def coco_object_from_stuff(dataset: datasets.Dataset, root: Path, rendered: list[scenes.Scene]) -> None:
    """The published pixel maps of COCO-Stuff: COCO's ids less one, 91 to 181 for stuff and 255 for no class."""
    ids = np.array([255, *(value for value in range(90) if value not in RAW_ABSENT)], np.uint8)
    for k, scene in enumerate(rendered):
        values = ids[class_map(dataset, scene) % 255]  # edges are no class either
        values[scene.classes == 1] = 100
        save(scene.image, root / f"images/val2017/{k:012d}.jpg")
        save(values, root / f"stuffthingmaps/val2017/{k:012d}.png")


def _cityscapes(dataset: datasets.Dataset, root: Path, rendered: list[scenes.Scene]) -> None:
    """Two cities. As published, a folder has maps of other kinds beside the `labelTrainIds`."""
    for k, scene in enumerate(rendered):
        city = ("frankfurt", "munster")[k % 2]
        name = f"val/{city}/{city}_{k:06d}_000019"
        save(scene.image, root / f"leftImg8bit/{name}_leftImg8bit.png")
        save(class_map(dataset, scene), root / f"gtFine/{name}_gtFine_labelTrainIds.png")
        save(scene.classes, root / f"gtFine/{name}_gtFine_labelIds.png")


def _coco_stuff(dataset: datasets.Dataset, root: Path, rendered: list[scenes.Scene]) -> None:
    """The published pixel maps: COCO's ids less one, eleven of which no class has."""
    [raw] = {maps.absent for maps in dataset.truth if maps.absent}
    ids = np.array([value for value in range(182) if value not in raw] + [IGNORE], np.uint8)
    for k, scene in enumerate(rendered):
        values = class_map(dataset, scene)
        save(scene.image, root / f"images/val2017/{k:012d}.jpg")
        save(ids[np.where(values == IGNORE, -1, values.astype(int))], root / f"stuffthingmaps/val2017/{k:012d}.png")


def _numbered_from_one(images: str, maps: str) -> Callable[..., None]:
    """Class k has the value k + 1, and 0 is no class. The paths have the number of the image."""

    def make(dataset: datasets.Dataset, root: Path, rendered: list[scenes.Scene]) -> None:
        for k, scene in enumerate(rendered, start=1):
            values = class_map(dataset, scene)
            save(scene.image, root / images.format(k))
            save(np.where(values == IGNORE, 0, values + 1), root / maps.format(k))

    return make


def _deep(images: str, maps: str, unmapped: str | None = None) -> Callable[..., None]:
    """Maps of 16 bits. The paths have the number of the image. `unmapped` is an image without a map."""

    def make(dataset: datasets.Dataset, root: Path, rendered: list[scenes.Scene]) -> None:
        for k, scene in enumerate(rendered, start=1):
            save(scene.image, root / images.format(k))
            save(class_map(dataset, scene), root / maps.format(k))
        if unmapped:
            save(rendered[0].image, root / unmapped)

    return make


def _coco(dataset: datasets.Dataset, root: Path, rendered: list[scenes.Scene]) -> None:
    """`instances_val2017.json` with polygons, one crowd as plain counts, and categories that are not scored."""
    names = ["hair drier", *dataset.classes]
    tree: dict[str, Any] = {"images": [], "annotations": []}
    tree["categories"] = [{"id": 2 * k + 1, "name": name} for k, name in enumerate(names)]
    plays = class_of(dataset)
    for k, scene in enumerate(rendered):
        height, width = scene.classes.shape
        name = f"{k:012d}.jpg"
        save(scene.image, root / "coco" / "val2017" / name)
        tree["images"].append({"id": 1000 + k, "file_name": name, "height": height, "width": width})
        for number, thing in enumerate(scene.things):
            mask = (scene.instances == thing.instance).astype(np.uint8)
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            polygons = [outline.ravel().tolist() for outline in outlines if len(outline) >= 3]
            crowd = number == len(scene.things) - 1 and k == 0
            counts = {"size": [height, width], "counts": _plain_counts(mask)}
            entry = {
                "id": len(tree["annotations"]) + 1,
                "image_id": 1000 + k,
                "category_id": 2 * names.index(plays[thing.name]) + 1,
                "segmentation": counts if crowd or not polygons else polygons,
                "area": int(mask.sum()),
                "bbox": list(thing.bbox),
                "iscrowd": int(crowd),
            }
            tree["annotations"].append(entry)
    folder = root / "coco" / "annotations"
    folder.mkdir(parents=True)
    (folder / "instances_val2017.json").write_text(json.dumps(tree))


def _plain_counts(mask: Array) -> list[int]:
    """Uncompressed run lengths, column by column, the first of what is not in the mask."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends.tolist(), len(flat)]).tolist()
    return [0, *runs] if flat[0] else runs


MAKERS: dict[str, Callable[..., None]] = {
    "voc21": _voc("VOCdevkit/VOC2012", "ImageSets/Segmentation/val.txt", "SegmentationClass", "SegmentationObject"),
    "voc20": _voc("VOCdevkit/VOC2012", "ImageSets/Segmentation/val.txt", "SegmentationClass"),
    "context": _voc("VOC2010", "ImageSets/SegmentationContext/val.txt", "SegmentationClassContext"),
    "context60": _voc("VOC2010", "ImageSets/SegmentationContext/val.txt", "SegmentationClassContext"),
    "coco-object": _coco_object,
    "coco-stuff": _coco_stuff,
    "coco-stuff10k": _numbered_from_one(
        "images/test2014/COCO_train2014_{:012d}.jpg", "annotations/test2014/COCO_train2014_{:012d}_labelTrainIds.png"
    ),
    "cityscapes": _cityscapes,
    "ade20k": _numbered_from_one(
        "ADEChallengeData2016/images/validation/ADE_val_{:08d}.jpg",
        "ADEChallengeData2016/annotations/validation/ADE_val_{:08d}.png",
    ),
    "context459": _deep(
        "VOCdevkit/VOC2010/JPEGImages/2008_{:06d}.jpg",
        "VOCdevkit/VOC2010/annotations_detectron2/pc459_val/2008_{:06d}.tif",
        unmapped="VOCdevkit/VOC2010/JPEGImages/2009_000000.jpg",
    ),
    "ade847": _deep(
        "ADE20K_2021_17_01/images_detectron2/validation/ADE_val_{:08d}.jpg",
        "ADE20K_2021_17_01/annotations_detectron2/validation/ADE_val_{:08d}.tif",
    ),
    "coco-ov": _coco,
}
