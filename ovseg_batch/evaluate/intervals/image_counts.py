"""Counts of single images, from which the figures of any selection of images follow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from ovseg_batch.types.arrays import AnyArray, Doubles, Indices

RESAMPLES = 1000  # bootstrap samples of the images
SEED = 0
LEVEL = 0.95  # of the intervals
ROOM = 1 << 22  # numbers of an array of weights


class ImageCounts:
    """Pixels, boundary and segments of each image and class. Classes that an image does not have are not stored.

    `pixels` (E, 5) int64: manifest row, class, correct pixels, pixels in the truth, pixels in the prediction. The class
    after the last holds the pixels of no class. `boundaries` (N, 2): row, boundary F1. `segments` (E, 6): row, class,
    and the counts of `PanopticScore`.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._parts: dict[str, list[AnyArray]] = {"pixels of images": [], "boundaries": [], "segments of images": []}

    def add(self, row: int, counts: Indices, boundary: float, segments: Doubles | None = None) -> None:
        """Add one image.

        Args:
            row: manifest row.
            counts: its confusion matrix.
            boundary: its boundary F1, or NaN.
            segments: (C, 4), its counts of `PanopticScore`.
        """
        table = np.stack([np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)], axis=1)
        self._keep("pixels of images", row, table)
        self._parts["boundaries"].append(np.array([[row, boundary]]))
        if segments is not None:
            self._keep("segments of images", row, segments)

    def _keep(self, name: str, row: int, table: AnyArray) -> None:
        used = np.flatnonzero(table.any(axis=1))
        self._parts[name].append(np.column_stack([np.full(len(used), row), used, table[used]]))

    def arrays(self) -> dict[str, AnyArray]:
        shapes = {"pixels of images": (0, 5), "boundaries": (0, 2), "segments of images": (0, 6)}
        kinds = {"pixels of images": np.int64, "boundaries": np.float64, "segments of images": np.float64}
        return {
            name: np.concatenate([np.zeros(shapes[name], kinds[name]), *parts]).astype(kinds[name])
            for name, parts in self._parts.items()
        }

    def merge(self, arrays: Mapping[str, AnyArray]) -> None:
        """Add the images of another score of the same classes."""
        for name, parts in self._parts.items():
            parts.append(arrays[name])

    def rows(self) -> Indices:
        """Return the manifest rows of all images, ascending."""
        rows: Indices = np.sort(self.arrays()["boundaries"][:, 0].astype(np.int64))
        return rows


def samples(images: int, resamples: int = RESAMPLES) -> Iterator[Doubles]:
    """Yield blocks of bootstrap weights (B, images): how often each sample has each image.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6.
    """
    generator = np.random.default_rng(SEED)
    block = max(1, min(resamples, ROOM // max(images, 1)))
    for start in range(0, resamples, block):
        drawn = generator.multinomial(images, np.full(images, 1 / images), size=min(block, resamples - start))
        yield drawn.astype(float)


def interval(values: Doubles) -> tuple[float, float]:
    """Return the limits of the percentile interval of bootstrap values; NaN where none is known."""
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def weighted_sums(table: AnyArray, rows: Indices, classes: int, weights: Doubles) -> Doubles:
    """Return the sums of the columns of a table over weighted images.

    Args:
        table: (E, 2 + K), row and class of each entry, and its numbers. No entry comes twice.
        rows: (N,) rows of the images, ascending.
        weights: (B, N).

    Returns:
        (B, classes, K).
    """
    width = table.shape[1] - 2
    sums = np.zeros((len(weights), classes, width))
    step = max(1, ROOM // max(len(rows) * width, 1))
    for first in range(0, classes, step):
        part = table[(table[:, 1] >= first) & (table[:, 1] < first + step)]
        count = min(step, classes - first)
        dense = np.zeros((len(rows), count, width))
        dense[np.searchsorted(rows, part[:, 0]), part[:, 1].astype(np.int64) - first] = part[:, 2:]
        sums[:, first : first + count] = (weights @ dense.reshape(len(rows), -1)).reshape(-1, count, width)
    return sums


def iou_of(sums: Doubles) -> Doubles:
    """Return the IoU (…, C) of sums (…, C, 3) of correct, true and predicted pixels, NaN without pixels."""
    union = sums[..., 1] + sums[..., 2] - sums[..., 0]
    return _ratio(sums[..., 0], union)


def accuracy_of(sums: Doubles) -> Doubles:
    """Return the share of correct pixels (…, C) of the same sums, NaN without true pixels."""
    return _ratio(sums[..., 0], sums[..., 1])


def _ratio(part: Doubles, whole: Doubles) -> Doubles:
    found: Doubles = np.divide(part, whole, out=np.full(part.shape, math.nan), where=whole > 0)
    return found


def mean_known(values: Doubles) -> Doubles:
    """Return the mean over the last axis without NaN; NaN where all are."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1).astype(float))
