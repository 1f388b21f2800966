"""Read COCO instances files: images, categories and objects. Segmentations are decoded when an image is read."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ovseg_batch.errors import UsageError
from ovseg_batch.io import rle
from ovseg_batch.io.records import parse_json
from ovseg_batch.units import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of the ground truth.

    Attributes:
        category: name of the class.
        rle: COCO's compressed run lengths.
        area: pixels.
        crowd: whether it represents many objects.
    """

    category: str
    rle: bytes
    area: float
    crowd: bool


class CocoObject(NamedTuple):
    """An annotation of a COCO file. `area` is None if the file has none."""

    id: Any
    category: str
    segmentation: Any
    area: float | None
    crowd: bool


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of a COCO file, and its objects that have a segmentation."""

    file_name: str
    height: int
    width: int
    objects: list[CocoObject] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CocoFile:
    """A COCO file. `categories` has one entry per id, in the order of the file, as the file has them."""

    categories: list[dict[str, Any]]
    images: list[CocoImage]
    tree: dict[str, Any]


def to_instance(file: Path, found: CocoObject, height: int, width: int) -> Instance:
    """Return an object with its run lengths. Raises UsageError if they are wrong; the message names the annotation."""
    try:
        counts = rle.from_coco(found.segmentation, height, width)
    except ValueError as error:
        raise UsageError(f"{file}: the segmentation of annotation {found.id!r} {error}.") from None
    area = rle.area(counts, height, width) if found.area is None else found.area
    return Instance(found.category, counts, area, found.crowd)


def read_tree(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        UsageError: the file cannot be read, is empty, no JSON, or holds something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from None
    if not content.strip():
        raise UsageError(f"{path} is empty.")
    try:
        tree = parse_json(content)
    except ValueError as error:
        raise UsageError(f"{path}: the file is wrong: it is not JSON ({error}).") from None
    if not isinstance(tree, dict):
        raise UsageError(
            f"{path} is not a COCO file: it holds {'a list' if isinstance(tree, list) else 'a single value'} in place "
            "of an object with images, annotations and categories. Export COCO from the annotation tool."
        )
    return tree


def read_coco(path: Path, classes: Collection[str] | None = None) -> CocoFile:
    """Read a COCO instances file.

    Args:
        classes: names of the categories whose objects are read. None: all.

    Raises:
        UsageError: the file is not a COCO instances file, or an entry is invalid; the message names the entry.
    """
    tree = read_tree(path)
    where = "the file"
    try:
        names = category_names(tree["categories"])
        found: dict[Any, CocoImage] = {}
        for image in tree["images"]:
            where = f"image {image.get('id')!r}"
            if image["id"] in found:
                raise ValueError("its id comes twice")
            found[image["id"]] = CocoImage(str(image["file_name"]), _side(image["height"]), _side(image["width"]))
        where, boxes = "the file", 0
        for annotation in tree["annotations"]:
            where = f"annotation {annotation.get('id')!r}"
            boxes += _add(annotation, names, found, classes)
    except KeyError as error:
        raise UsageError(f"{path}: {where} has no {error.args[0]}.") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"{path}: {where} is wrong: {error}.") from None
    if boxes:
        kinds = counted(boxes, "annotation has", "annotations have")
        log.warning("%s only a box and no segmentation in %s. Boxes are skipped.", kinds, path)
    return CocoFile(list(tree["categories"]), list(found.values()), tree)


def category_names(entries: Any) -> dict[Any, str]:
    """Return id → name. Raises ValueError, KeyError or another error of a wrong entry, whose message names it."""
    names: dict[Any, str] = {}
    for entry in entries:
        if entry["id"] in names:
            raise ValueError(f"two categories have the id {entry['id']!r}")
        if "name" not in entry:
            raise ValueError(f"category {entry['id']!r} has no name")
        names[entry["id"]] = entry["name"]
    return names


def _add(
    annotation: dict[str, Any], names: dict[Any, str], images: dict[Any, CocoImage], classes: Collection[str] | None
) -> int:
    """Add an annotation to its image. Return 1 if it has only a box."""
    category, image = annotation["category_id"], annotation["image_id"]
    if category not in names:
        raise ValueError(f"there is no category {category!r}")
    if image not in images:
        raise ValueError(f"there is no image {image!r}")
    if classes is not None and names[category] not in classes:
        return 0
    if not annotation.get("segmentation"):
        return 1
    area, crowd = _area(annotation.get("area")), bool(annotation.get("iscrowd", 0))
    one = CocoObject(annotation.get("id"), names[category], annotation["segmentation"], area, crowd)
    images[image].objects.append(one)
    return 0


def _side(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ValueError(f"{value!r} is not a height or width")
    return value


def _area(value: Any) -> float | None:
    if value is None:
        return None
    area = float(value)
    if not 0 <= area < math.inf:
        raise ValueError(f"{value!r} is not an area")
    return area
