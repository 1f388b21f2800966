"""Runs of equal pixels in maps. Counting runs is much faster than counting pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg_batch.types.arrays import AnyArray, Doubles, Indices, Integers, Mask, Narrow


@dataclass(frozen=True, slots=True)
class Runs:
    """Horizontal runs of pixels in raster order.

    Attributes:
        starts: (R,) int64, index of the first pixel in the flattened map.
        lengths: (R,) int64, pixels.
    """

    starts: Indices
    lengths: Indices

    def pixels(self, which: Mask) -> Indices:
        """Return the indices of all pixels of some runs (R,) bool, in raster order."""
        starts, lengths = self.starts[which], self.lengths[which]
        before = lengths.cumsum() - lengths
        return np.repeat(starts - before, lengths) + np.arange(lengths.sum())

    def sums(self, values: NDArray[np.number[Any] | np.bool_]) -> Doubles:
        """Return the sum of `values` (H, W) in each run, added in float32: (R,) float64."""
        return np.add.reduceat(values.astype(np.float32, copy=False).ravel(), self.starts).astype(np.float64)


def row_runs(*maps: AnyArray) -> Runs:
    """Return the longest runs in which each of the maps (H, W) is constant."""
    begins = np.ones(maps[0].shape, bool)
    np.not_equal(maps[0][:, 1:], maps[0][:, :-1], out=begins[:, 1:])
    for values in maps[1:]:
        begins[:, 1:] |= values[:, 1:] != values[:, :-1]
    starts = np.flatnonzero(begins)
    return Runs(starts, np.diff(starts, append=begins.size))


@dataclass(frozen=True, slots=True)
class RunMap:
    """A map of integers as horizontal runs of equal values. Neighbouring runs may have the same value.

    Attributes:
        size: (H, W).
        runs: its runs, which cover every pixel.
        values: (R,) value of each run.
    """

    size: tuple[int, int]
    runs: Runs
    values: Integers

    @classmethod
    def of(cls, values: Integers, *others: AnyArray) -> RunMap:
        """Return a map (H, W) in the longest runs in which `others` (H, W) are constant, too."""
        runs = row_runs(values, *others)
        height, width = values.shape
        return cls((height, width), runs, values.ravel()[runs.starts])

    def pixels(self) -> Narrow:
        """Return the map (H, W) of values that are not negative."""
        narrow = self.values.astype(narrow_dtype(int(self.values.max(initial=0))))
        return np.repeat(narrow, self.runs.lengths).reshape(self.size)

    def touching(self) -> tuple[Indices, Indices]:
        """Return the pairs of runs that touch each other, diagonally too: the earlier and the later of each pair."""
        width, (starts, lengths) = self.size[1], (self.runs.starts, self.runs.lengths)
        above = np.flatnonzero(starts < starts[-1] - starts[-1] % width)  # runs with a row below them
        row = starts[above] - starts[above] % width
        first = np.maximum(starts[above] - 1, row) + width
        last = np.minimum(starts[above] + lengths[above], row + width - 1) + width
        first, last = (np.searchsorted(starts, pixel, side="right") - 1 for pixel in (first, last))
        counts = last - first + 1
        below = np.repeat(first - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
        beside = np.flatnonzero(starts[1:] % width)
        return np.concatenate([np.repeat(above, counts), beside]), np.concatenate([below, beside + 1])


def narrow_dtype(largest: int) -> np.dtype[Any]:
    """Return the dtype of the fewest bytes that holds 0 to `largest` and that OpenCV knows."""
    return np.dtype(np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.int32)


def placed_counts(pixels: Mask, left: int, top: int, size: tuple[int, int]) -> Indices:
    """Return the lengths of runs outside and inside of a mask in turn, in raster order.

    Args:
        pixels: (h, w) bool, the part of the mask in a box.
        left, top: position of the box.
        size: (H, W) of the image.

    Returns:
        (R,) int64 with the sum H × W. Only the first and the last can be 0.
    """
    height, width = pixels.shape
    framed = np.zeros((height, width + 2), bool)
    framed[:, 1:-1] = pixels
    row, column = np.divmod(np.flatnonzero(framed[:, 1:] != framed[:, :-1]), width + 1)
    turns = (top + row) * size[1] + left + column
    meets = np.flatnonzero(turns[1:] == turns[:-1])  # one run through the end of a row of the image
    turns = np.delete(turns, np.concatenate([meets, meets + 1]))
    return np.diff(turns, prepend=0, append=size[0] * size[1])
