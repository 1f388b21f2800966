"""What of a run is exported: which masks, which images, and in which part of a data set they go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.methods.confidence import ImageConfidence
from ovseg_batch.results import Results
from ovseg_batch.types import ImageRow
from ovseg_batch.wording import spelled

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which masks and images of a run are wanted.

    Attributes:
        labels: only masks of these; empty: of all.
        min_score: least confidence of a mask, in [0, 1].
        min_area: least pixels of a mask.
        split: only images of this part, which then is not kept apart from any other.
        val_share: share of the images that is `val`, by a hash of their keys, where the manifest has no column `split`.
    """

    labels: tuple[str, ...] = ()
    min_score: float = 0.0
    min_area: int = 0
    split: str | None = None
    val_share: float = 0.0

    def check(self, results: Results) -> None:
        """Raises UsageError where it asks for what the run does not have."""
        for label in self.labels:
            if label not in results.labels:
                raise UsageError(
                    f"The run has no label {label!r}.{nearest(label, results.labels)} "
                    f"Its labels: {', '.join(results.labels)}."
                )
        if self.split is not None and self.split not in self._parts(results.manifest):
            raise UsageError(
                f"There is no split {self.split!r}: the list of images has no column `split`, and no share of them "
                f"was chosen as val with {spelled('--val 0.1', 'Selection(val_share=0.1)')}."
            )

    def splits(self, manifest: Manifest) -> tuple[str, ...]:
        """The parts that the export keeps apart; empty where the images are not parted, or one part is asked for."""
        return () if self.split is not None else self._parts(manifest)

    def _parts(self, manifest: Manifest) -> tuple[str, ...]:
        if "split" in manifest.columns:
            return SPLITS
        return ("train", "val") if self.val_share > 0 else ()

    def names(self, results: Results) -> tuple[str, ...]:
        """The classes of the export, in the run's order."""
        return tuple(name for name in results.labels if not self.labels or name in self.labels)


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """An image with the masks that were chosen, as lines of the mask stage's table.

    `name` is the path that files made of it have, without a suffix: the file name's own, unless two images would share
    it. `split` is empty where images are not parted.
    """

    row: ImageRow
    name: str
    height: int
    width: int
    annotations: list[dict[str, Any]]
    confidence: ImageConfidence
    split: str

    @property
    def under(self) -> str:
        """The image's name below its split's folder."""
        return f"{self.split}/{self.name}" if self.split else self.name

    @property
    def suffix(self) -> str:
        """What the image file's name ends with."""
        return PurePosixPath(self.row.file_name).suffix


@dataclass(frozen=True)
class Chooser:
    """Reads the chosen images of a run, shard by shard."""

    results: Results
    selection: Selection
    shared: frozenset[int] = field(default=frozenset())  # hashes of the stems that more than one image has

    def shard(self, shard: int) -> Iterator[ChosenImage]:
        """The images of a committed shard, in manifest order.

        Raises:
            UsageError: a file name that leads out of its folder, which only a forged manifest has.
        """
        wanted = self.selection
        for row, line in self.results.shard(shard):
            split = self._split(row)
            if wanted.split is not None and split != wanted.split:
                continue
            masks = line["annotations"]
            chosen = [one for one in masks if self._is_wanted(one)]
            sure = ImageConfidence.from_masks(one["confidence"] for one in masks)
            apart = "" if wanted.split is not None else split
            yield ChosenImage(row, self._name(row), line["height"], line["width"], chosen, sure, apart)

    def _is_wanted(self, annotation: Mapping[str, Any]) -> bool:
        wanted = self.selection
        if wanted.labels and annotation["category"] not in wanted.labels:
            return False
        return bool(annotation["confidence"] >= wanted.min_score and annotation["area"] >= wanted.min_area)

    def _split(self, row: ImageRow) -> str:
        own = row.extra.get("split")
        if own is not None and str(own).lower() in SPLITS:
            return str(own).lower()
        if "split" in row.extra:
            return "train"
        if not self.selection.val_share:
            return ""
        return "val" if _hash(row.key) / 2**64 < self.selection.val_share else "train"

    def _name(self, row: ImageRow) -> str:
        name = row.file_name
        if name.startswith("/") or "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise UsageError(f"{name!r} in the manifest is no name for a file below a folder.")
        stem = _stem(name)
        return f"{stem}-{_hash(row.key):016x}" if _hash(stem.lower()) in self.shared else stem


def shared_stems(manifest: Manifest) -> frozenset[int]:
    """Hashes of the names that two or more images have when their suffix is taken off; 8 bytes a row are held."""
    hashes = np.fromiter(
        (_hash(_stem(name).lower()) for name in manifest.read_column("file_name")), np.uint64, manifest.rows
    )
    hashes.sort()
    return frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
