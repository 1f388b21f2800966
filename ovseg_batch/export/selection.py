"""Select the masks and images to export, and assign images to splits."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io.hashing import key_hash
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.methods.confidence import ImageConfidence
from ovseg_batch.types import Annotation, ImageRow
from ovseg_batch.wording import spelled
from ovseg_batch.workdir.decisions import Decisions
from ovseg_batch.workdir.results import Results

SPLITS = ("train", "val", "test")
#: Names of splits in data sets. `eval` is missing, because it is val for some and test for others.
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")

LONGEST = 255  # bytes of a file name that file systems allow
SUFFIX = 4  # bytes of `.png`, `.txt` and the like
SHARED = 17  # bytes of `-` and a hash


def known_split(value: object) -> str | None:
    """Return the split of a manifest value: train if empty, None if unknown."""
    text = "" if value is None else str(value).strip().casefold()
    return SPLIT_NAMES.get(text) if text else "train"


def parted_name(name: str) -> tuple[str, str]:
    """Split a file name into stem and suffix with its dot. Names of dots only have no suffix."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.rpartition(".")
    if not stem.strip(".") or not suffix:
        return name, ""
    return f"{folder}{slash}{stem}", f".{suffix}"


def stem_of(name: str) -> str:
    """Return the name of an image's outputs without their suffix, as most formats use it."""
    return parted_name(name)[0]


def visible(name: str, *hidden: str) -> str:
    """Return a name in which no part begins like names that readers of folders skip."""
    return "/".join(f"hidden{part}" if part.startswith(hidden) else part for part in name.split("/"))


Naming = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Selection:
    """The masks and images of a run to export.

    Attributes:
        labels: labels of the masks; empty: all.
        min_score: least confidence of a mask, in [0, 1].
        min_area: least area of a mask in pixels.
        split: export only this split, without a folder for it. None: all.
        val_share: share of images in the split `val`, chosen by a hash of their keys; used without a column `split`.
        decisions: a person's decisions about masks and images. What was judged wrong is left out.
    """

    labels: tuple[str, ...] = ()
    min_score: float = 0.0
    min_area: int = 0
    split: str | None = None
    val_share: float = 0.0
    decisions: Decisions | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the selection as plain values, for fingerprints of exports."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "decisions"}
        return plain if self.decisions is None else {**plain, "decisions": self.decisions.identity()}

    def check(self, results: Results) -> None:
        """Raise UsageError if the selection names a label, split, mask or image that the run does not have."""
        if self.decisions is not None:
            self.decisions.check(results)
        for label in self.labels:
            if label not in results.labels:
                raise UsageError(
                    f"The run has no label {label!r}.{nearest(label, results.labels)} "
                    f"Its labels: {', '.join(results.labels)}."
                )
        self._check_splits(results.manifest)
        if self.split not in (None, *SPLITS):
            raise UsageError(f"There is no split {self.split!r}. An export has {', '.join(SPLITS)}.")
        if self.split is not None and self.split not in self._parts(results.manifest):
            raise UsageError(
                f"There is no split {self.split!r}: the list of images has no column `split`, and no share of them "
                f"was chosen as val with {spelled('--val 0.1', 'Selection(val_share=0.1)')}."
            )

    @staticmethod
    def _check_splits(manifest: Manifest) -> None:
        """Raise UsageError where the column `split` holds an unknown value."""
        if "split" not in manifest.columns:
            return
        for place, value in enumerate(manifest.read_column("split")):
            if known_split(value) is None:
                name = next(itertools.islice(manifest.read_column("file_name"), place, None))
                raise UsageError(
                    f"The list of images has the split {str(value)!r} for {name}. A split is one of "
                    f"{', '.join(SPLIT_NAMES)}, or empty, which is train. Correct the list, and run it again with "
                    f"{spelled('--update', 'update=True')}."
                )

    def splits(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the splits that the export separates. Empty without splits, or if one split is selected."""
        return () if self.split is not None else self._parts(manifest)

    def _parts(self, manifest: Manifest) -> tuple[str, ...]:
        if "split" in manifest.columns:
            return SPLITS
        return ("train", "val") if self.val_share > 0 else ()

    def names(self, results: Results) -> tuple[str, ...]:
        """Return the exported classes, in the order of the run."""
        return tuple(name for name in results.labels if not self.labels or name in self.labels)


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """An image with its selected masks.

    Attributes:
        name: path of its outputs without a suffix. It follows the file name, and is unique.
        split: empty without splits.
        number: id of the image in COCO files.
    """

    row: ImageRow
    name: str
    height: int
    width: int
    annotations: list[Annotation]
    confidence: ImageConfidence
    split: str
    number: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    @property
    def under(self) -> str:
        """The name of the image below the folder of its split."""
        return f"{self.split}/{self.name}" if self.split else self.name

    @property
    def suffix(self) -> str:
        """The suffix of the image file."""
        return parted_name(self.row.file_name)[1]


@dataclass(frozen=True)
class Chooser:
    """Reads the selected images of a run, shard by shard.

    Attributes:
        shared: hashes of names that several images would have.
        naming: maps a file name to the name of the outputs, without a suffix.
    """

    results: Results
    selection: Selection
    shared: frozenset[int] = field(default=frozenset())
    naming: Naming = stem_of

    def shard(self, shard: int) -> Iterator[ChosenImage]:
        """Yield the selected images of a committed shard, in manifest order.

        Raises:
            UsageError: a file name leads out of its folder, which happens only in forged manifests.
        """
        wanted = self.selection
        for image in self.results.shard(shard):
            row = image.row
            split = self.split(row)
            if wanted.split is not None and split != wanted.split:
                continue
            judged = wanted.decisions
            if judged is not None and not judged.shows(row.key):
                continue
            chosen = [
                one
                for index, one in enumerate(image.annotations)
                if self._is_wanted(one) and (judged is None or judged.keeps(row.key, index))
            ]
            sure = ImageConfidence.from_masks(one.confidence for one in image.annotations)
            apart = "" if wanted.split is not None else split
            name, number = self.name(row), self.results.manifest.image_id(row)
            yield ChosenImage(row, name, image.height, image.width, chosen, sure, apart, number)

    def _is_wanted(self, annotation: Annotation) -> bool:
        wanted = self.selection
        if wanted.labels and annotation.category not in wanted.labels:
            return False
        return bool(annotation.confidence >= wanted.min_score and annotation.area >= wanted.min_area)

    def split(self, row: ImageRow) -> str:
        """Return the split of an image; empty without splits."""
        if "split" in row.extra:
            return known_split(row.extra["split"]) or "train"
        if not self.selection.val_share:
            return ""
        return "val" if key_hash(row.key) / 2**64 < self.selection.val_share else "train"

    def name(self, row: ImageRow) -> str:
        """Return the name of an image's outputs.

        Raises:
            UsageError: a file name leads out of its folder, which happens only in forged manifests.
        """
        name = row.file_name
        if name.startswith("/") or "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise UsageError(f"{name!r} in the manifest is not a valid name of a file below a folder.")
        folder, slash, stem = self.naming(name).rpartition("/")
        folders = [shortened(part) for part in folder.split("/")]
        room = LONGEST - max(SUFFIX, len(os.fsencode(parted_name(name)[1])))
        if key_hash(f"{folder}{slash}{stem}".lower()) in self.shared or len(os.fsencode(stem)) > room:
            stem = f"{_cut(stem, room - SHARED)}-{key_hash(row.key):016x}"
        return f"{'/'.join(folders)}{slash}{stem}"


def shared_names(manifest: Manifest, naming: Naming) -> frozenset[int]:
    """Return the hashes of names that several images would have. 8 bytes a row are held."""
    hashes = np.fromiter(
        (key_hash(naming(name).lower()) for name in manifest.read_column("file_name")), np.uint64, manifest.rows
    )
    hashes.sort()
    return frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def shortened(part: str, room: int = LONGEST) -> str:
    """Return a name of at most `room` bytes. Longer names, as from URLs, are cut and get a hash."""
    return part if len(os.fsencode(part)) <= room else f"{_cut(part, room - SHARED)}-{key_hash(part):016x}"


def _cut(text: str, room: int) -> str:
    """Return the start of a text with at most `room` bytes, without splitting a character."""
    return text.encode("utf-8", "surrogateescape")[:room].decode("utf-8", "ignore")
