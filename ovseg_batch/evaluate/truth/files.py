"""Files of a ground truth of one's own: COCO instances, COCO panoptic, and a folder of class maps."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.metrics import IGNORE, OTHER
from ovseg_batch.evaluate.truth.coco_file import CocoImage, Instance, category_names, read_coco, read_tree, to_instance
from ovseg_batch.io import rle
from ovseg_batch.io.hashing import content_hash
from ovseg_batch.io.records import parse_json
from ovseg_batch.types.arrays import AnyArray, ClassMap
from ovseg_batch.units import counted
from ovseg_batch.wording import spelled

log = logging.getLogger(__name__)

CLASS_LISTS = ("classes.json", "classes.txt")  # in a folder of class maps
PANOPTIC = "panoptic.json"
MAPS = (".png", ".tif", ".tiff")
IGNORED, IGNORED_16 = 255, 65535  # values of ignored pixels in maps of 8 and 16 bits


@dataclass(frozen=True, slots=True)
class Category:
    """A category of a truth. `thing` is None where the file does not define it."""

    name: str
    thing: bool | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """The truth of an image.

    Attributes:
        classes: (H, W) int16, indices of categories, `IGNORE` or `OTHER`.
        instances: objects of the categories that are things.
    """

    classes: ClassMap
    instances: list[Instance]


class TruthFiles(Protocol):
    """The images of a truth by index, and its categories.

    Attributes:
        names: names of the images.
        suffixes: whether these have the suffixes of the image files.
        has_instances: whether objects are apart.
        has_other: whether pixels without an annotation are of no class.
    """

    names: list[str]
    categories: list[Category]
    suffixes: bool
    has_instances: bool
    has_other: bool

    def read(self, place: int, things: Collection[str]) -> Drawn:
        """Read the truth of an image. Raises UsageError if it is wrong."""
        ...

    def content(self, place: int) -> str:
        """Return a hash of the truth of an image."""
        ...


def open_files(path: Path, classes: Path | None) -> TruthFiles:
    """Open a truth: a COCO file of instances or of panoptic segments, or a folder of class maps.

    Args:
        classes: list of the classes of a folder of maps. None: `classes.json` or `classes.txt` in it.

    Raises:
        UsageError: there is no such file or folder, or it is no truth.
    """
    if path.is_dir():
        listed = classes or next((path / name for name in CLASS_LISTS if (path / name).is_file()), None)
        if listed is None and (path / PANOPTIC).is_file():
            return PanopticTruth(path / PANOPTIC)
        if listed is None:
            raise UsageError(
                f"{path} has no list of its classes. Write {path / CLASS_LISTS[1]} with one class a line, the first "
                f"for the pixels of value 0, or name such a file with {spelled('--truth-classes', 'classes=')}."
            )
        return MapsTruth(path, listed)
    if not path.exists():
        raise UsageError(f"There is no truth {path}. Give a COCO file, or a folder of class maps.")
    if classes is not None:
        raise UsageError(f"A list of classes belongs to a folder of class maps, but {path} is a file.")
    tree = read_tree(path)
    annotations = tree.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else {}
    return PanopticTruth(path) if isinstance(first, dict) and "segments_info" in first else CocoTruth(path)


class CocoTruth:
    """A COCO file of instances. Pixels without an annotation are of no class."""

    suffixes, has_instances, has_other = True, True, True

    def __init__(self, path: Path) -> None:
        self._path, coco = path, read_coco(path)
        self._images = coco.images
        self.names = [one.file_name for one in coco.images]
        self.categories = _categories(path, coco.categories)
        self._single = self._crowds_are_single(coco.tree["annotations"])

    def _crowds_are_single(self, annotations: Sequence[dict[str, Any]]) -> bool:
        """Return whether masks that are marked as crowds are single objects: CVAT marks all masks so."""
        crowds = [one for one in annotations if one.get("iscrowd")]
        of_cvat = any("occluded" in (one.get("attributes") or {}) for one in crowds)
        single = bool(crowds) and (of_cvat or len(crowds) == len(annotations))
        if single:
            kinds = counted(len(crowds), "mask is", "masks are")
            log.warning("%s marked as crowds in %s, as CVAT exports them. They count as objects.", kinds, self._path)
        return single

    def read(self, place: int, things: Collection[str]) -> Drawn:
        image = self._images[place]
        index = {category.name: number for number, category in enumerate(self.categories)}
        found = [self._instance(image, number) for number in range(len(image.objects))]
        classes = np.full((image.height, image.width), OTHER, np.int16)
        for one in sorted(found, key=lambda one: (one.category in things, -one.area)):
            value = IGNORE if one.crowd else index[one.category]
            rle.decode_placed(one.rle, image.height, image.width).paint(classes, value)
        return Drawn(classes, [one for one in found if one.category in things])

    def _instance(self, image: CocoImage, number: int) -> Instance:
        listed = image.objects[number]
        crowd = listed.crowd and not self._single
        # a corrected mask may have the area of the earlier one
        return to_instance(self._path, listed._replace(area=None, crowd=crowd), image.height, image.width)

    def content(self, place: int) -> str:
        image = self._images[place]
        text = json.dumps([image.height, image.width, self._single, *image.objects], default=str)
        return content_hash(text.encode("utf-8", "surrogatepass"))


class PanopticTruth:
    """A COCO panoptic file, with its PNGs in the folder of its name. Pixels of id 0 are ignored."""

    suffixes, has_instances, has_other = True, True, False

    def __init__(self, path: Path) -> None:
        self._path, tree = path, read_tree(path)
        where = "the file"
        try:
            self.categories = _categories(path, tree["categories"])
            self._category = category_names(tree["categories"])
            images = {}
            for image in tree["images"]:
                where = f"image {image.get('id')!r}"
                images[image["id"]] = str(image["file_name"])
            self.names, self._maps, self._segments = list[str](), list[Path](), list[list[dict[str, Any]]]()
            for annotation in tree["annotations"]:
                where = f"the annotation of image {annotation.get('image_id')!r}"
                self.names.append(images[annotation["image_id"]])
                self._maps.append(path.with_suffix("") / str(annotation["file_name"]))
                self._segments.append([self._segment(one) for one in annotation["segments_info"]])
        except KeyError as error:
            raise UsageError(f"{path}: {where} has no {error.args[0]!r}.") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: {where} is wrong: {error}.") from None

    def _segment(self, one: dict[str, Any]) -> dict[str, Any]:
        crowd = bool(one.get("iscrowd", 0))
        return {"id": int(one["id"]), "name": self._category[one["category_id"]], "crowd": crowd}

    def read(self, place: int, things: Collection[str]) -> Drawn:
        file = self._maps[place]
        pixels = read_map(file)
        if pixels.ndim != 3 or pixels.shape[2] < 3:
            raise UsageError(f"{file} is not a map of segments: it needs red, green and blue.")
        ids = pixels[..., :3].astype(np.int64) @ np.array([1, 256, 65536])
        index = {category.name: number for number, category in enumerate(self.categories)}
        classes, instances = np.full(ids.shape, IGNORE, np.int16), list[Instance]()
        listed = {one["id"]: one for one in self._segments[place]}
        for number in np.unique(ids).tolist():
            if not number:
                continue
            if number not in listed:
                raise UsageError(f"{file} has a segment {number} that {self._path.name} does not list.")
            one, mask = listed[number], ids == number
            if not one["crowd"]:
                classes[mask] = index[one["name"]]
            if one["name"] in things:
                instances.append(Instance(one["name"], rle.encode(mask), float(mask.sum()), one["crowd"]))
        return Drawn(classes, instances)

    def content(self, place: int) -> str:
        text = json.dumps(self._segments[place])
        return content_hash(_bytes(self._maps[place]) + text.encode("utf-8", "surrogatepass"))


class MapsTruth:
    """A folder of class maps: PNG or TIFF, whose values are indices of the list of classes."""

    suffixes, has_instances, has_other = False, False, False

    def __init__(self, folder: Path, listed: Path) -> None:
        self._folder, self._listed = folder, listed
        self._files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MAPS)
        if not self._files:
            raise UsageError(f"{folder} has no class maps: there is no .png and no .tif in it.")
        self.names = [path.relative_to(folder).with_suffix("").as_posix() for path in self._files]
        self._names = read_class_list(listed)
        self.categories = [Category(name) for name in dict.fromkeys(self._names.values())]

    @cached_property
    def _table(self) -> AnyArray:
        """Value of a map → index of its category, `OTHER` for values that no class has."""
        index = {category.name: number for number, category in enumerate(self.categories)}
        table = np.full(IGNORED_16 + 1, OTHER, np.int16)
        for value, name in self._names.items():
            table[value] = index[name]
        return table

    def read(self, place: int, things: Collection[str]) -> Drawn:
        file = self._files[place]
        values = read_map(file)
        if values.ndim != 2 or values.dtype.kind not in "bui":
            kind = f"it has {values.shape[-1]} channels" if values.ndim != 2 else f"its pixels are {values.dtype}"
            raise UsageError(
                f"{file} is not a map of class indices: {kind}. Save it as a greyscale or palette PNG whose values are "
                "the lines of the class list, from 0."
            )
        ignored = values == (IGNORED if values.dtype == np.uint8 else IGNORED_16)
        found = values.astype(np.int64)
        inside = np.where(ignored | (found < 0) | (found > IGNORED_16), 0, found)
        classes: ClassMap = self._table[inside]
        wrong = (classes == OTHER) & ~ignored | (found != inside) & ~ignored
        if wrong.any():
            raise UsageError(
                f"{file} has the value {int(found[wrong][0])}, but the classes of {self._listed} have values "
                f"from {min(self._names)} to {max(self._names)}. Only {IGNORED} (65535 in 16 bits) is ignored."
            )
        classes[ignored] = IGNORE
        return Drawn(classes, [])

    def content(self, place: int) -> str:
        return content_hash(_bytes(self._files[place]) + repr(self._names).encode("utf-8", "surrogatepass"))


def read_class_list(path: Path) -> dict[int, str]:
    """Return value → name of a list of classes: text with a name a line, or JSON as `export -f semantic` writes it.

    Raises:
        UsageError: the file cannot be read, or lists no class.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read the list of classes {path}: {error}.") from None
    if path.suffix.lower() != ".json":
        lines = text.rstrip().splitlines()
        found = {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    else:
        try:
            tree = parse_json(text)
            tree = tree["classes"] if isinstance(tree, dict) and "classes" in tree else tree
            pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
            found = {int(value): str(name) for value, name in pairs}
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{path} is not a list of classes ({error}). Write a JSON list of names, or "
                '{"classes": {"0": "sky", "1": "road"}}.'
            ) from None
    if not found or min(found) < 0 or max(found) >= IGNORED_16:
        raise UsageError(f"{path} lists no classes with values from 0 to {IGNORED_16 - 1}.")
    return found


def read_map(file: Path) -> AnyArray:
    """Return the pixels of a PNG or TIFF, of palettes the indices. Raises UsageError if it cannot be read."""
    try:
        with Image.open(file) as opened:
            return np.array(opened)
    except FileNotFoundError:
        raise UsageError(f"There is no truth {file}.") from None
    except Exception as error:  # decoders raise many classes
        raise UsageError(f"The truth {file} cannot be read as an image: {error}.") from None


def _bytes(file: Path) -> bytes:
    return hashlib.blake2b(file.read_bytes()).digest() if file.is_file() else b"-"


def _categories(path: Path, entries: Any) -> list[Category]:
    """Return the categories of a COCO file, each name once."""
    found = dict[str, Category]()
    for one in entries:
        thing = one.get("isthing")
        found.setdefault(str(one["name"]), Category(str(one["name"]), None if thing is None else bool(thing)))
    if not found:
        raise UsageError(f"{path} has no categories.")
    return list(found.values())
