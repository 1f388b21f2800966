"""What there is to say of a run, added up shard by shard; and which images are worth showing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ovseg_batch.methods.confidence import STEPS, ImageConfidence, step_of
from ovseg_batch.types import FinishedImage
from ovseg_batch.workdir.progress import StageStatus, stage_status
from ovseg_batch.workdir.results import Results, failed_rows

Array = np.ndarray[Any, Any]

MOST_UNSURE = 10  # images with more unsure masks are counted together
AREA_BINS = 12  # of the logarithm of a mask's share of its image, each half as large as the next


@dataclass
class Gathered:
    """Sums over everything a run has committed.

    `doubt` (rows,) float32 of every image, the order of review: NaN where it has not been done or failed. `sure` counts
    masks by steps of confidence, `unsure` images by their unsure masks. `failures` are the first of each code, at most
    `listed` in all; `codes` counts them all.
    """

    doubt: Array
    stages: list[StageStatus]
    masks: int = 0
    empty: int = 0  # images without a mask
    label_masks: Counter[str] = field(default_factory=Counter)
    label_images: Counter[str] = field(default_factory=Counter)
    label_pixels: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    areas: Array = field(default_factory=lambda: np.zeros(AREA_BINS, np.int64))
    sure: Array = field(default_factory=lambda: np.zeros(STEPS + 1, np.int64))
    unsure: Array = field(default_factory=lambda: np.zeros(MOST_UNSURE + 1, np.int64))
    codes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, tuple[str, str, str]] = field(default_factory=dict)  # row → stage, code, message

    @property
    def images(self) -> int:
        """That have masks, or were found to have none."""
        return int((~np.isnan(self.doubt)).sum())


def gather(results: Results, listed: int) -> Gathered:
    """Go through the masks and failures once; of the images no more is held than 4 bytes each."""
    found = Gathered(
        np.full(results.manifest.span, np.nan, np.float32),
        [stage_status(store, results.manifest.shards) for store in results.stores],
    )
    for commit in results.masks.commits():
        for image in results.shard(commit.shard):
            _count(found, image)
    for number, _, stage, code, message in failed_rows(results.manifest, results.stores):
        found.codes[code] += 1
        if len(found.failures) < listed:
            found.failures[number] = (stage, code, message)
    return found


def _count(found: Gathered, image: FinishedImage) -> None:
    masks, size = image.annotations, image.height * image.width
    confidence = ImageConfidence.from_masks(one.confidence for one in masks)
    found.doubt[image.row.row] = confidence.doubt
    found.unsure[min(confidence.unsure, MOST_UNSURE)] += 1
    found.masks += len(masks)
    found.empty += not masks
    found.pixels += size
    for one in masks:
        found.label_masks[one.category] += 1
        found.label_pixels[one.category] += one.area
        share = max(one.area / size, 1e-9)
        found.areas[min(AREA_BINS - 1, int(-math.log2(min(share, 1.0))))] += 1
        found.sure[step_of(one.confidence)] += 1
    found.label_images.update({one.category for one in masks})


def worth_showing(found: Gathered, limit: int) -> Array:
    """Rows for the gallery, ascending: failures first of all, half of the others the least certain, half spread evenly.

    Args:
        limit: at most so many.
    """
    done = np.flatnonzero(~np.isnan(found.doubt))
    chosen = np.array(sorted(found.failures), np.int64)[:limit]
    room = limit - len(chosen)
    if len(done) > room:
        order = done[np.argsort(-found.doubt[done], kind="stable")]
        unsure, others = order[: room // 2], np.sort(order[room // 2 :])
        even = others[np.linspace(0, len(others) - 1, room - len(unsure)).astype(np.int64)]
        done = np.concatenate([unsure, even])
    return np.unique(np.concatenate([chosen, done]))
