"""The truth of rendered scenes in the forms in which people have a truth of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovseg_batch import datasets, scenes
from ovseg_batch.io import rle


def read_maps(root: Path) -> list[tuple[str, Any, Any]]:
    """Image name, class map and map of instances of every scene."""
    found = []
    for image in sorted((root / "images").iterdir()):
        classes, instances = (
            np.array(Image.open(root / "truth" / f"{image.name}.{kind}.png")) for kind in ("classes", "instances")
        )
        found.append((image.name, classes, instances))
    return found


def _objects(classes: Any, instances: Any) -> list[tuple[str, Any]]:
    """The class and the mask of every object, and of every class of stuff."""
    names = datasets.load("scenes").classes
    found = [(names[k], (classes == k) & (instances == 0)) for k in np.unique(classes[instances == 0])]
    return [*found, *((names[classes[instances == k][0]], instances == k) for k in np.unique(instances) if k)]


def coco(root: Path, path: Path, change: Callable[[dict[str, Any]], object] = lambda tree: None) -> Path:
    """Write COCO instances with run lengths. Category ids are not contiguous. `change` may damage the tree."""
    ids = {name: 10 * k + 3 for k, name in enumerate(scenes.CLASSES)}
    tree: dict[str, Any] = {"images": [], "annotations": []}
    tree["categories"] = [{"id": k, "name": n, "isthing": int(n in scenes.THING_NAMES)} for n, k in ids.items()]
    for number, (name, classes, instances) in enumerate(read_maps(root), start=70):
        height, width = classes.shape
        tree["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for category, mask in _objects(classes, instances):
            counts = {"size": [height, width], "counts": rle.encode(mask).decode()}
            one = {"id": len(tree["annotations"]) + 1, "image_id": number, "category_id": ids[category]}
            tree["annotations"].append({**one, "segmentation": counts, "area": int(mask.sum()), "iscrowd": 0})
    change(tree)
    path.write_text(json.dumps(tree))
    return path


def class_maps(root: Path, folder: Path, palette: bool = False) -> Path:
    """Write a folder of class maps and `classes.txt`."""
    folder.mkdir()
    for name, classes, _ in read_maps(root):
        picture = Image.fromarray(classes.astype(np.uint8))
        if palette:
            picture.putpalette([value for k in range(256) for value in (k, 255 - k, k // 2)])
        picture.save(folder / f"{Path(name).stem}.png")
    (folder / "classes.txt").write_text("\n".join(scenes.CLASSES) + "\n")
    return folder


def panoptic(root: Path, path: Path) -> Path:
    """Write a COCO panoptic file with its folder of maps of segments."""
    ids = {name: k for k, name in enumerate(scenes.CLASSES, start=1)}
    tree: dict[str, Any] = {"images": [], "annotations": []}
    tree["categories"] = [{"id": k, "name": n, "isthing": int(n in scenes.THING_NAMES)} for n, k in ids.items()]
    path.with_suffix("").mkdir()
    for number, (name, classes, instances) in enumerate(read_maps(root)):
        height, width = classes.shape
        drawn, segments = np.zeros((height, width, 3), np.uint8), []
        for k, (category, mask) in enumerate(_objects(classes, instances), start=300):
            drawn[mask] = k % 256, k // 256, 0
            segments.append({"id": k, "category_id": ids[category], "iscrowd": 0})
        tree["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        tree["annotations"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
        Image.fromarray(drawn).save(path.with_suffix("") / f"{name}.png")
    path.write_text(json.dumps(tree))
    return path
