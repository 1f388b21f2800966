"""Read the ground truth of images (class maps and instances) from the published layouts of data sets."""

from __future__ import annotations

import functools
import glob
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from ovseg_batch.datasets import ClassMaps, Dataset
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.metrics import IGNORE
from ovseg_batch.evaluate.truth.coco_file import CocoObject, Instance, read_coco, to_instance
from ovseg_batch.io import rle
from ovseg_batch.io.entries import Entry, Source
from ovseg_batch.io.hashing import content_hash, file_hash
from ovseg_batch.types.arrays import AnyArray, ClassMap

VOID_8_BITS = 255  # value of ignored pixels in all maps of 8 bits


@dataclass(frozen=True, slots=True)
class Truth:
    """The ground truth of an image. Either attribute may be None.

    Attributes:
        classes: (H, W) int16, indices into `Dataset.scored`, negative for ignored pixels.
        instances: the objects.
        sizes: (height, width) of each file that was read, once if they are equal.
    """

    classes: ClassMap | None
    instances: list[Instance] | None
    sizes: tuple[tuple[int, int], ...]


class TruthSource(Protocol):
    """What an evaluation reads of a ground truth.

    Attributes:
        has_instances, has_classes: whether images have objects, and class maps.
    """

    @property
    def has_instances(self) -> bool: ...
    @property
    def has_classes(self) -> bool: ...

    def has(self, name: str) -> bool:
        """Return whether there is a ground truth of an image of the run, by its file name."""
        ...

    def read(self, name: str) -> Truth:
        """Read the ground truth of an image that has one. Raises UsageError."""
        ...

    def digest(self, names: Iterable[str]) -> str:
        """Return a hash of the ground truth of images."""
        ...


class TruthReader:
    """Reads the ground truth of images by their names.

    Raises:
        UsageError: the data set is not at `root`, or has no ground truth of an image.
    """

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self._dataset = dataset
        self._root = dataset.root(root)
        self._maps = next((maps for maps in dataset.truth if self._some(maps.path)), None)
        self._coco = self._root / dataset.coco if dataset.coco and (self._root / dataset.coco).is_file() else None
        self._numbered = dataset.instances if dataset.instances and self._some(dataset.instances) else None
        if self._maps is None and self._coco is None:
            wanted = " or ".join([*(maps.path for maps in dataset.truth), *([dataset.coco] if dataset.coco else [])])
            raise UsageError(f"{self._root} has no truth of {dataset.title}: there is no {wanted}.")

    @property
    def has_instances(self) -> bool:
        return self._coco is not None or self._numbered is not None

    @property
    def has_classes(self) -> bool:
        return self._maps is not None or (self._coco is not None and bool(self._dataset.background))

    def images(self) -> Iterator[Path]:
        """Yield the images of the split, in the order of their names."""
        pattern = next(p for p in self._dataset.images if next(iter(self._root.glob(p)), None))
        if self._dataset.split is None:
            found = sorted(self._root.glob(pattern))
            maps = self._maps if self._dataset.split_by_truth else None
            yield from (path for path in found if maps is None or self._file(maps.path, path.name).is_file())
            return
        listed = self._root / self._dataset.split
        if not listed.is_file():
            raise UsageError(f"There is no list of the split, {listed}.")
        folder, suffix = (self._root / pattern).parent, Path(pattern).suffix
        try:
            lines = listed.read_text(encoding="utf-8").splitlines()
        except ValueError as error:
            raise UsageError(f"The list of the split, {listed}, is not UTF-8 text ({error}).") from None
        for line in lines:
            if line.strip():
                yield folder / f"{line.strip()}{suffix}"

    def source(self, oracle: bool) -> Source:
        """Return the split as an input of a manifest. With `oracle`, the prompts of an image are its true classes."""
        folder = self._root.resolve()

        def entries() -> Iterator[Entry]:
            for path in self.images():
                full = path.resolve()
                extra = {"prompts": ", ".join(self.present(path.name)) or "background"} if oracle else {}
                yield Entry(str(full), full.relative_to(folder).as_posix(), str(path), None, None, None, extra)

        return Source(self._dataset.name, [("prompts", pa.string())] if oracle else [], entries())

    def present(self, name: str) -> list[str]:
        """Return the classes in the ground truth of an image, without the background."""
        truth = self.read(name)
        if truth.classes is not None:
            found = [self._dataset.scored[k] for k in np.unique(truth.classes) if k >= 0]
        else:
            found = sorted({instance.category for instance in truth.instances or []})
        return [one for one in found if one in self._dataset.classes]

    def has(self, name: str) -> bool:
        """Return True: a data set has the ground truth of all its images, and `read` raises where it does not."""
        return True

    def read(self, name: str) -> Truth:
        """Read the ground truth of an image. Only the last part of its name counts."""
        name = Path(name).name
        classes = self._class_map(name, self._maps) if self._maps is not None else None
        sizes = [] if classes is None else [classes.shape]
        instances = None
        if self._coco is not None:
            height, width, found = self._of_image(name)
            instances = [to_instance(self._coco, one, height, width) for one in found]
            sizes.append((height, width))
            if classes is None and self._dataset.background:
                classes = self._drawn(instances, height, width)
        elif self._numbered is not None and classes is not None:
            numbers = self._opened(self._numbered, name)
            instances = self._objects(numbers, classes) if numbers.shape == classes.shape else []
            sizes.append(numbers.shape)
        return Truth(classes, instances, tuple(dict.fromkeys(sizes)))

    def digest(self, names: Iterable[str]) -> str:
        """Return a hash of the files that hold the ground truth of these images."""
        digest = hashlib.blake2b(digest_size=16)
        if self._coco is not None:
            digest.update(file_hash(self._coco).encode())
        layouts = [path for path in (self._maps.path if self._maps else None, self._numbered) if path]
        for file in (self._file(path, Path(name).name) for name in names for path in layouts):
            content = content_hash(file.read_bytes()) if file.is_file() else "-"
            digest.update(f"{file.name} {content}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _file(self, path: str, name: str) -> Path:
        stem = Path(name).stem.removesuffix(self._dataset.image_ending)
        if "*" not in path:
            return self._root / path.format(stem=stem, name=name)
        pattern = path.format(stem=glob.escape(stem), name=glob.escape(name))
        return next(iter(self._root.glob(pattern)), self._root / pattern)

    def _some(self, path: str) -> bool:
        return next(iter(self._root.glob(path.format(stem="*", name="*"))), None) is not None

    def _opened(self, path: str, name: str) -> AnyArray:
        file = self._file(path, name)
        if not file.is_file():
            raise UsageError(f"There is no truth {file} for the image {name}.")
        try:
            with Image.open(file) as opened:
                values: AnyArray = np.array(opened)
        except Exception as error:  # decoders raise many classes
            raise UsageError(f"The truth {file} cannot be read as an image: {error}.") from None
        if values.ndim != 2:
            raise UsageError(f"{file} is not a map of class indices: it has {values.shape[-1]} channels.")
        if values.dtype.kind not in "bui":
            raise UsageError(f"{file} is not a map of class indices: its pixels are {values.dtype}.")
        return values

    def _class_map(self, name: str, maps: ClassMaps) -> ClassMap:
        ignored, values = self._dataset.ignored, self._opened(maps.path, name)
        table = _lookup(len(self._dataset.scored), self._dataset.zero_is_ignored, ignored, maps)
        classes: ClassMap = table[np.where((values < 0) | (values > ignored), ignored, values)]
        if values.dtype == np.uint8 and ignored > VOID_8_BITS:
            classes[values == VOID_8_BITS] = table[ignored]
        return classes

    def _objects(self, numbers: AnyArray, classes: ClassMap) -> list[Instance]:
        """Return the objects of a map of instance numbers."""
        found = []
        for number in np.unique(numbers):
            mask = numbers == number
            if number in (0, VOID_8_BITS):
                continue
            counts = np.bincount(classes[mask] - IGNORE)  # ignored pixels first
            label = int(np.roll(counts, -1).argmax())
            if label < len(counts) - 1:
                found.append(Instance(self._dataset.scored[label], rle.encode(mask), float(mask.sum()), False))
        return found

    def _drawn(self, instances: Iterable[Instance], height: int, width: int) -> ClassMap:
        """Paint the class map of the instances, with smaller ones in front. Crowds are ignored."""
        classes = np.zeros((height, width), np.int16)
        for instance in sorted(instances, key=lambda one: -one.area):
            value = IGNORE if instance.crowd else self._dataset.scored.index(instance.category)
            rle.decode_placed(instance.rle, height, width).paint(classes, value)
        return classes

    def _of_image(self, name: str) -> tuple[int, int, list[CocoObject]]:
        assert self._coco is not None
        index = _coco_index(str(self._coco), self._dataset.classes)
        if name not in index:
            raise UsageError(f"{self._coco} has no image {name}.")
        return index[name]


@functools.lru_cache(maxsize=16)
def _lookup(classes: int, zero_is_ignored: bool, ignored: int, maps: ClassMaps) -> ClassMap:
    """Return the table (ignored + 1,) from values of a published map to classes, -1 for ignored values."""
    first = int(maps.rest_is_background)
    table = np.full(ignored + 1, 0 if maps.rest_is_background else IGNORE, np.int16)
    values = [value for value in range(ignored) if value not in maps.absent][int(zero_is_ignored) :][: classes - first]
    table[values] = np.arange(first, classes)
    return table


@functools.lru_cache(maxsize=2)
def _coco_index(path: str, classes: tuple[str, ...]) -> dict[str, tuple[int, int, list[CocoObject]]]:
    """Return file name → height, width and objects of the given classes. Objects without a segmentation are skipped.

    Raises:
        UsageError: the file is not a COCO instances file, or an entry is invalid; the message names the entry.
    """
    coco = read_coco(Path(path), classes)
    return {Path(one.file_name).name: (one.height, one.width, one.objects) for one in coco.images}
