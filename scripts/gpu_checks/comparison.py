"""Compare two runs: their masks, and their edited pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from ovseg_batch.workdir.store import Workdir

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask as COCO's RLE, and the lead of its class over the next one, 0 to 1."""

    rle: dict[str, Any]
    margin: float


Masks = dict[tuple[str, str], list[Mask]]


def masks_of(workdir: Workdir) -> Masks:
    """Return every mask of a finished run, by file name and label."""
    tree = json.loads(workdir.annotations.read_text(encoding="utf-8"))
    labels = {category["id"]: category["name"] for category in tree["categories"]}
    names = {image["id"]: image["file_name"] for image in tree["images"]}
    found: Masks = defaultdict(list)
    for one in tree["annotations"]:
        found[names[one["image_id"]], labels[one["category_id"]]].append(Mask(one["segmentation"], one["margin"]))
    return dict(found)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well the masks of a run are found in another run.

    Attributes:
        overlaps: (N,) for each mask of the reference its best IoU with a mask of the same image and label, 0 if there
            is none.
        areas: (N,) pixels of these masks.
        undecided: share of the reference's mask area that is left out, since rounding decides between two labels.
    """

    overlaps: Array
    areas: Array
    undecided: float = 0.0

    @property
    def mean(self) -> float:
        """Mean mask IoU; NaN without masks."""
        return float(self.overlaps.mean()) if len(self.overlaps) else float("nan")

    @property
    def weighted(self) -> float:
        """Mean mask IoU weighted by area; NaN without masks. One small mask that one run lacks hardly changes it."""
        return float(np.average(self.overlaps, weights=self.areas)) if len(self.overlaps) else float("nan")


def agreement(reference: Masks, other: Masks, margin: float = 0.0) -> Agreement:
    """Return the agreement of `other` with the masks of `reference` whose label leads by at least `margin`."""
    overlaps: list[float] = []
    areas: list[float] = []
    left_out = 0.0
    for key, masks in reference.items():
        decided = [mask.rle for mask in masks if mask.margin >= margin]
        left_out += sum(float(coco.area(mask.rle)) for mask in masks if mask.margin < margin)
        if decided:
            rivals = [mask.rle for mask in other.get(key, [])]
            areas += coco.area(decided).tolist()
            none = np.zeros((1, len(decided)))
            overlaps += (coco.iou(rivals, decided, [0] * len(decided)) if rivals else none).max(axis=0).tolist()
    whole = left_out + sum(areas)
    return Agreement(np.array(overlaps), np.array(areas), left_out / whole if whole else 0.0)


@dataclass(frozen=True, slots=True)
class PictureDifference:
    """How far edited pictures are from those of a reference run.

    Attributes:
        mean: mean absolute difference of all channels and pixels, 0 to 255.
        kept: of the pixels that the reference run left as they were, the share that the other run left too. NaN where
            the pictures do not have the size of the originals.
    """

    mean: float
    kept: float


def picture_difference(originals: Path, reference: Path, other: Path) -> PictureDifference:
    """Compare the edited pictures of two runs over the same folder.

    A picture of another size (a crop by another mask) is resized first.

    Raises:
        ValueError: the runs do not have the same files, or no files.
    """
    names = sorted(_files(reference))
    if not names or names != sorted(_files(other)):
        raise ValueError(f"{len(names)} edited pictures in one run, {len(list(_files(other)))} in the other")
    differences: list[float] = []
    untouched = kept = 0
    for name in names:
        before, after = _pixels(reference / name), _pixels(other / name)
        if before.shape != after.shape:
            after = _pixels(other / name, (before.shape[1], before.shape[0]))
        differences.append(float(np.abs(before.astype(np.int16) - after).mean()))
        original = _pixels(originals / name) if (originals / name).is_file() else before[:0]
        if original.shape == before.shape:
            same = (original == before).all(axis=2)
            untouched += int(same.sum())
            kept += int((original == after).all(axis=2)[same].sum())
    return PictureDifference(float(np.mean(differences)), kept / untouched if untouched else float("nan"))


def _files(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _pixels(path: Path, size: tuple[int, int] | None = None) -> Array:
    """(H, W, 4) uint8, resized to (W, H) if `size` is given."""
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    return np.asarray(picture if size is None else picture.resize(size))
