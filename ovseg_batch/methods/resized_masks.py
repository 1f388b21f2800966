"""Masks of resized logits, computed from the ends of their runs.

Along a row of pixels, a bilinearly resized map is linear between two columns of the source. So a run of pixels above a
threshold begins or ends at most once between them, and no value of a pixel is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.stitching import bilinear_taps
from ovseg_batch.types.arrays import Floats, Indices


@dataclass(frozen=True, slots=True)
class MaskRuns:
    """A mask as runs of pixels that fill some rows of its image. No other row has a pixel of the mask.

    Attributes:
        size: (H, W) of the image.
        top, rows: first of the rows, and their number.
        row, first: (R,) int64, row of each run, counted from `top`, and its first column. A run may be empty.
        inside: (R,) bool, whether the run belongs to the mask.
    """

    size: tuple[int, int]
    top: int
    rows: int
    row: Indices
    first: Indices
    inside: NDArray[np.bool_]

    @property
    def starts(self) -> Indices:
        """The first pixel of each run, counted from the first pixel of the first of the rows."""
        return self.row * self.size[1] + self.first

    @property
    def lengths(self) -> Indices:
        """The pixels of each run."""
        return np.diff(self.starts, append=self.rows * self.size[1])

    def area(self) -> int:
        """Return the number of pixels of the mask."""
        return int(self.lengths[self.inside].sum())

    def counts(self) -> Indices:
        """Return the lengths of runs outside and inside in turn, through all rows of the image."""
        starts, inside = self.starts[self.lengths > 0], self.inside[self.lengths > 0]
        turns = self.top * self.size[1] + starts[np.diff(inside.view(np.int8), prepend=0) != 0]
        if len(inside) and inside[-1]:
            turns = np.append(turns, (self.top + self.rows) * self.size[1])
        counts: Indices = np.diff(turns, prepend=0, append=self.size[0] * self.size[1])
        return counts

    def placed(self) -> PlacedMask:
        """Return the mask in its bounding box."""
        filled, width = self.inside & (self.lengths > 0), self.size[1]
        if not filled.any():
            return PlacedMask(np.zeros((0, 0), bool), 0, 0)
        last = (self.starts + self.lengths - 1)[filled] % width
        left, right = int(self.first[filled].min()), int(last.max()) + 1
        starts = self.row * (right - left) + self.first.clip(left, right) - left
        lengths = np.diff(starts, append=self.rows * (right - left))
        pixels = self.inside.repeat(lengths).reshape(self.rows, right - left)
        rows = self.row[filled]
        return PlacedMask(pixels[rows[0] : rows[-1] + 1], left, self.top + int(rows[0]))


def above(logits: Tensor, size: tuple[int, int], threshold: float = 0.0) -> MaskRuns:
    """Return where a map exceeds a threshold that is resized bilinearly.

    Args:
        logits: (h, w) float32, on the CPU.
        size: (H, W) of the mask.
    """
    top, left, values = _near_positive(logits.numpy() - np.float32(threshold), size[0])
    flags = values > 0
    begins = np.ones(flags.shape, bool)
    np.not_equal(flags[:, 1:], flags[:, :-1], out=begins[:, 1:])
    row, column = begins.nonzero()
    inside, right_of = flags[row, column], values[row, column].astype(np.float64)
    left_of, scale = values[row, column - 1], size[1] / logits.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):  # at the first column, which begins at the first pixel
        zero = (left + column - right_of / (right_of - left_of) + 0.5) * scale - 0.5
    first = np.where(column > 0, np.where(inside, np.floor(zero) + 1, np.ceil(zero)), 0)
    return MaskRuns(size, top, len(values), row, first.clip(0, size[1]).astype(np.int64), inside)


def _near_positive(values: Floats, height: int) -> tuple[int, int, Floats]:
    """Resize the rows of a map to an image of so many rows, where they are near a positive value.

    Returns:
        The first of these rows of the image, the first column of the map, and the values (rows, columns) float32.
    """
    lower, upper, weight = (one.numpy() for one in bilinear_taps(len(values), height, torch.device("cpu")))
    flags = values > 0
    occupied = np.logical_or.reduce(flags, axis=1)
    columns = np.flatnonzero(np.logical_or.reduce(flags, axis=0))
    near = np.flatnonzero(occupied[lower] | occupied[upper])
    if not len(near):
        return 0, 0, values[:0]
    top, left = int(near[0]), max(0, int(columns[0]) - 1)
    rows, part = slice(top, int(near[-1]) + 1), values[:, left : int(columns[-1]) + 2]
    before, after = part[lower[rows]], part[upper[rows]]
    return top, left, before + (after - before) * weight[rows, None]
