"""Odd annotations in a COCO file of truth: left out with a note, or refused in a sentence that names them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovseg_batch import datasets
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.truth.coco_file import Instance
from ovseg_batch.evaluate.truth.datasets import TruthReader
from ovseg_batch.io import rle
from tests.support import layouts

NAME = "000000000001.jpg"
GOOD = {
    "id": 1,
    "image_id": 1,
    "category_id": 1,
    "segmentation": [[10, 5, 30, 5, 30, 15, 10, 15]],
    "area": 200,
    "iscrowd": 0,
}
ABSENT = object()


def read(root: Path, *more: dict[str, Any], **parts: Any) -> list[Instance] | None:
    """Read the truth of one image of COCO's layout with annotations beside a good one."""
    (root / "images/val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / "images/val2017" / NAME)
    tree = {
        "images": [{"id": 1, "file_name": NAME, "width": 60, "height": 40}],
        "annotations": [
            GOOD,
            *({k: v for k, v in {**GOOD, "id": 77, **one}.items() if v is not ABSENT} for one in more),
        ],
        "categories": [{"id": 1, "name": "person"}],
        **parts,
    }
    (root / "annotations/instances_val2017.json").write_text(json.dumps(tree))
    return TruthReader(datasets.load("coco-object"), root).read(NAME).instances


@pytest.mark.parametrize("segmentation", [[], None, ABSENT, {}])
def test_boxes_are_left_out_and_counted(segmentation: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, {"segmentation": segmentation}, {"segmentation": segmentation, "id": 78})
    assert found is not None and len(found) == 1
    assert "2 annotations have only a box and no segmentation in" in caplog.text


@pytest.mark.parametrize("area", [None, ABSENT])
def test_an_unknown_area_is_that_of_the_mask(area: Any, tmp_path: Path) -> None:
    found = read(tmp_path, {"area": area})
    assert found is not None and found[1].area == rle.area(found[1].rle, 40, 60) > 0


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"segmentation": [[10, 5, 30, 5]]}, "polygon of 4 numbers"),
        ({"segmentation": [[10, 5]]}, "polygon of 2 numbers"),
        ({"segmentation": [[10, 5, 30, 5, 30, 15, 10]]}, "polygon of 7 numbers"),
        ({"segmentation": [[]]}, "polygon of 0 numbers"),
        ({"segmentation": [10, 5, 30, 5, 30, 15]}, "flat list"),
        ({"segmentation": [[float("nan"), 5, 30, 5, 30, 15]]}, "coordinate"),
        ({"segmentation": [[float("inf"), 5, 30, 5, 30, 15]]}, "coordinate"),
        ({"segmentation": [[1e12, 5, 30, 5, 30, 15]]}, "coordinate"),
        ({"segmentation": [[-1e9, 5, 30, 5, 30, 15]]}, "coordinate"),
        ({"segmentation": [["1", 5, 30, 5, 30, 15]]}, "coordinate"),
        ({"segmentation": [[None] * 6]}, "coordinate"),
        ({"segmentation": "mask.png"}, "no list of polygons"),
        ({"segmentation": 5}, "no list of polygons"),
        ({"segmentation": {"counts": [2400]}}, "no list of polygons"),
        ({"segmentation": {"size": [60, 40], "counts": [0, 2400]}}, "size"),
        ({"segmentation": {"size": [20, 30], "counts": [300, 50, 250]}}, "size"),
        ({"segmentation": {"size": [40, 60], "counts": [300, 50]}}, "add up"),
        ({"segmentation": {"size": [40, 60], "counts": [-300, 2700]}}, "decoded"),
        ({"segmentation": {"size": [40, 60], "counts": "é"}}, "decoded"),
        ({"segmentation": {"size": [40, 60], "counts": "oooooooooooo"}}, "decoded"),
        ({"segmentation": {"size": [40, 60], "counts": None}}, "decoded"),
        ({"area": "big"}, "could not convert"),
        ({"area": float("nan")}, "not an area"),
        ({"area": 10**400}, "too large"),
        ({"area": -5}, "not an area"),
        ({"category_id": 9}, "no category 9"),
        ({"image_id": 9}, "no image 9"),
        ({"category_id": [1]}, "unhashable"),
        ({"category_id": ABSENT}, "has no category_id"),
        ({"image_id": ABSENT}, "has no image_id"),
    ],
)
def test_a_wrong_annotation_is_named(odd: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"annotation 77 .*{reason}") as raised:
        read(tmp_path, odd)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"images": [{"id": 1, "file_name": NAME, "width": 60}]}, "image 1 has no height"),
        ({"images": [{"id": 1, "file_name": NAME, "width": 60, "height": -4}]}, "image 1 is wrong: -4"),
        ({"categories": [{"id": 1}]}, "category 1 has no name"),
        ({"annotations": [5]}, "is wrong"),
        ({"annotations": None}, "is wrong"),
    ],
)
def test_a_wrong_file_is_named(parts: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        read(tmp_path, **parts)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[-3, -2, 30, 5, 70, 45]],
        {"size": [40, 60], "counts": [300, 50, 2050]},
        {"size": [40, 60], "counts": rle.encode(np.eye(40, 60, dtype=np.bool_)).decode()},
    ],
)
def test_usual_forms_are_read(segmentation: Any, tmp_path: Path) -> None:
    found = read(tmp_path, {"segmentation": segmentation})
    assert found is not None and len(found) == 2 and rle.area(found[1].rle, 40, 60) > 0


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_class_map_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    for part in ("images", "truth"):
        (tmp_path / part).mkdir()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    for kind in ("classes", "instances"):
        (tmp_path / "truth" / f"a.png.{kind}.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.png\.\w+\.png cannot be read as an image"):
        TruthReader(datasets.load("scenes"), tmp_path).read("a.png")


def two_maps(tmp_path: Path, values: np.ndarray[Any, Any], **more: Any) -> datasets.Dataset:
    """A data set of 300 classes with one image and its map."""
    for part in ("images", "truth"):
        (tmp_path / part).mkdir(exist_ok=True)
    Image.fromarray(np.zeros((*values.shape, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    Image.fromarray(values).save(tmp_path / "truth" / "a.tif")
    described = {"title": "t", "images": "images/*", "truth": "truth/{stem}.tif", "ignored": 65535, **more}
    file = tmp_path / f"own{len(more)}.yaml"
    file.write_text(json.dumps({"classes": [f"class {k}" for k in range(300)], **described}))
    return datasets.load(str(file))


def test_maps_of_16_bits_hold_class_255_and_name_their_ignored_value(tmp_path: Path) -> None:
    values = np.array([[0, 254, 255, 256, 299, 300, 65534, 65535]], np.uint16)
    dataset = two_maps(tmp_path, values)
    found = TruthReader(dataset, tmp_path).read("a.png").classes
    assert found is not None and found.tolist() == [[0, 254, 255, 256, 299, -1, -1, -1]]


def test_255_is_ignored_in_every_map_of_8_bits(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8)[None]
    wide = TruthReader(two_maps(tmp_path, values), tmp_path).read("a.png").classes
    assert wide is not None and wide.tolist() == [[*range(255), -1]]
    few = two_maps(tmp_path, values, classes=["a", "b"], ignored=255)
    narrow = TruthReader(few, tmp_path).read("a.png").classes
    assert narrow is not None and narrow.tolist() == [[0, 1, *[-1] * 254]]


@pytest.mark.parametrize("values", [np.full((2, 3), -7, np.int32), np.full((2, 3), 70000, np.int32)])
def test_values_that_no_map_of_classes_has_are_ignored(values: np.ndarray[Any, Any], tmp_path: Path) -> None:
    found = TruthReader(two_maps(tmp_path, values), tmp_path).read("a.png").classes
    assert found is not None and (found == -1).all()


def test_a_map_of_fractions_is_refused(tmp_path: Path) -> None:
    dataset = two_maps(tmp_path, np.ones((2, 3), np.float32))
    with pytest.raises(UsageError, match="its pixels are float32"):
        TruthReader(dataset, tmp_path).read("a.png")


@pytest.mark.parametrize("folder", ["annotations_ctx459/validation", "annotations_detectron2/pc459_val"])
def test_context_459_is_read_in_both_layouts(folder: str, tmp_path: Path) -> None:
    images = "images/validation" if "ctx459" in folder else "JPEGImages"
    for part in (images, folder):
        (tmp_path / part).mkdir(parents=True)
    for stem in ("a", "b"):
        Image.fromarray(np.zeros((1, 3, 3), np.uint8)).save(tmp_path / images / f"{stem}.jpg")
    Image.fromarray(np.array([[255, 458, 65535]], np.uint16)).save(tmp_path / folder / "b.tif")
    reader = TruthReader(datasets.load("context459"), tmp_path)
    assert [path.name for path in reader.images()] == ["b.jpg"]
    classes = reader.read("b.jpg").classes
    assert classes is not None and classes.tolist() == [[255, 458, -1]]
    assert reader.present("b.jpg") == [datasets.load("context459").classes[k] for k in (255, 458)]


@pytest.mark.parametrize(
    ("path", "absent", "last"),
    [
        ("stuffthingmaps/val2017/a.png", layouts.RAW_ABSENT, 90),
        ("annotations/val2017/a.png", layouts.RAW_ABSENT, 90),
        ("annotations/val2017/a_labelTrainIds.png", (), 79),
    ],
)
def test_coco_objects_from_the_maps_of_coco_stuff(
    path: str, absent: tuple[int, ...], last: int, tmp_path: Path
) -> None:
    """Things are classes 1 to 80. Stuff, 255 and values that no class has are background."""
    for folder in ("images/val2017", Path(path).parent):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((1, 256, 3), np.uint8)).save(tmp_path / "images/val2017/a.jpg")
    Image.fromarray(np.arange(256, dtype=np.uint8)[None]).save(tmp_path / path)
    reader = TruthReader(datasets.load("coco-object"), tmp_path)
    found = reader.read("a.jpg")
    assert found.classes is not None and found.instances is None and not reader.has_instances
    things = [value for value in range(last + 1) if value not in absent]
    assert [found.classes[0, value] for value in things] == list(range(1, 81))
    assert not np.delete(found.classes[0], things).any()


def test_maps_have_priority_over_crowds_of_the_json(tmp_path: Path) -> None:
    read(tmp_path, {"iscrowd": 1})
    (tmp_path / "stuffthingmaps/val2017").mkdir(parents=True)
    Image.fromarray(np.full((40, 60), 255, np.uint8)).save(tmp_path / "stuffthingmaps/val2017/000000000001.png")
    truth = TruthReader(datasets.load("coco-object"), tmp_path).read(NAME)
    assert truth.classes is not None and not truth.classes.any() and len(truth.instances or ()) == 2
