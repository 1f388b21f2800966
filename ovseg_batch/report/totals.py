"""Sum the statistics of a run shard by shard, and select the images of the gallery."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ovseg_batch.methods.confidence import STEPS, ImageConfidence, step_of
from ovseg_batch.types import FinishedImage, MaskSummary
from ovseg_batch.types.arrays import Floats, Indices
from ovseg_batch.workdir.progress import StageStatus, stage_status
from ovseg_batch.workdir.results import Results, failed_rows

MOST_UNSURE = 10  # images with at least so many unsure masks share a bin
AREA_BINS = 12  # logarithmic bins of a mask's share of its image; each is half of the next


@dataclass
class Gathered:
    """Sums over the committed shards of a run.

    Attributes:
        doubt: (rows,) float32, sum of 1 - confidence of each image's masks; NaN if it is unfinished or failed.
        sure: numbers of masks per bin of confidence.
        unsure: numbers of images per number of unsure masks.
        failures: first failures of each code, a limited number in total.
        codes: number of failures per code.
    """

    doubt: Floats
    stages: list[StageStatus]
    masks: int = 0
    empty: int = 0  # images without a mask
    label_masks: Counter[str] = field(default_factory=Counter)
    label_images: Counter[str] = field(default_factory=Counter)
    label_pixels: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    areas: Indices = field(default_factory=lambda: np.zeros(AREA_BINS, np.int64))
    sure: Indices = field(default_factory=lambda: np.zeros(STEPS + 1, np.int64))
    unsure: Indices = field(default_factory=lambda: np.zeros(MOST_UNSURE + 1, np.int64))
    codes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, tuple[str, str, str]] = field(default_factory=dict)  # row → stage, code, message

    @property
    def images(self) -> int:
        """The number of finished images, with or without masks."""
        return int((~np.isnan(self.doubt)).sum())


def gather(results: Results, listed: int) -> Gathered:
    """Read the masks and failures once. 4 bytes per image are held.

    Args:
        results: the run.
        listed: most failures to list."""
    found = Gathered(
        np.full(results.manifest.span, np.nan, np.float32),
        [stage_status(store, results.manifest.shards) for store in results.stores],
    )
    for commit in results.masks.commits():
        for image in results.shard(commit.shard, MaskSummary):
            _count(found, image)
    for number, _, stage, code, message in failed_rows(results.manifest, results.stores):
        found.codes[code] += 1
        if len(found.failures) < listed:
            found.failures[number] = (stage, code, message)
    return found


def _count(found: Gathered, image: FinishedImage[MaskSummary]) -> None:
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


def worth_showing(found: Gathered, limit: int) -> Indices:
    """Return the rows of the gallery, ascending: failures, then half least certain images, half an even sample.

    Args:
        limit: most images in the gallery.
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
