"""A mask as the part of it that lies in a box, so that its cost follows its own size and not the image's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ovseg_batch.methods.stitching import bilinear_taps
from ovseg_batch.methods.tiles import Box
from ovseg_batch.types.arrays import Floats, Mask


@dataclass(frozen=True, slots=True)
class PlacedMask:
    """The part of a mask in a box of the image. No pixel outside of the box belongs to the mask.

    Attributes:
        pixels: (h, w) bool.
        left, top: position of the box in pixels of the image.
    """

    pixels: Mask
    left: int
    top: int

    @classmethod
    def crop(cls, mask: Mask) -> PlacedMask:
        """Return a mask (H, W) bool of a whole image, cut to its bounding box."""
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return cls(mask[:0, :0], 0, 0)
        return cls(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], int(columns[0]), int(rows[0]))

    @property
    def place(self) -> tuple[slice, slice]:
        """The rows and columns of the box, to index an array of the image."""
        height, width = self.pixels.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def box(self) -> Box:
        """The box as x0, y0, x1, y1."""
        height, width = self.pixels.shape
        return self.left, self.top, self.left + width, self.top + height

    def shifted(self, right: int, down: int) -> PlacedMask:
        """Return the same mask at another position."""
        return PlacedMask(self.pixels, self.left + right, self.top + down)

    def whole(self, size: tuple[int, int]) -> Mask:
        """Return the mask of the whole image (H, W) bool."""
        mask = np.zeros(size, bool)
        mask[self.place] = self.pixels
        return mask


def positive(logits: Tensor, size: tuple[int, int]) -> PlacedMask:
    """Return where a map is positive that is resized bilinearly.

    Along a row of pixels, the resized map is linear between two columns of the source. So a run of positive pixels
    begins and ends at most once between them, and no value of a pixel is computed.

    Args:
        logits: (h, w) float32, on the CPU.
        size: (H, W) of the mask.
    """
    top, left, values = _near_positive(logits, size[0])
    flags = values > 0
    begins = np.ones(flags.shape, bool)
    np.not_equal(flags[:, 1:], flags[:, :-1], out=begins[:, 1:])
    row, column = begins.nonzero()
    inside, after = flags[row, column], values[row, column]
    before, width = values[row, column - 1], size[1]
    with np.errstate(divide="ignore", invalid="ignore"):  # at the first column, which begins at the first pixel
        zero = (left + column - after / (after - before).astype(np.float64) + 0.5) * (width / logits.shape[1]) - 0.5
    first = np.where(column > 0, np.where(inside, np.floor(zero) + 1, np.ceil(zero)), 0)
    first = first.clip(0, width).astype(np.int64)

    start = row * width + first
    filled = inside & (np.diff(start, append=len(values) * width) > 0)
    if not filled.any():
        return PlacedMask(np.zeros((0, 0), bool), 0, 0)
    ends = np.append(start[1:], len(values) * width)
    left, right = int(first[filled].min()), int(((ends[filled] - 1) % width).max()) + 1
    lengths = np.diff(row * (right - left) + first.clip(left, right) - left, append=len(values) * (right - left))
    pixels = inside.repeat(lengths).reshape(len(values), right - left)
    rows = row[filled]
    return PlacedMask(pixels[rows[0] : rows[-1] + 1], left, top + int(rows[0]))


def _near_positive(logits: Tensor, height: int) -> tuple[int, int, Floats]:
    """Resize the rows of a map to an image of so many rows, where they are near a positive value.

    Returns:
        The first of these rows of the image, the first column of the map, and the values (rows, columns) float32.
    """
    values = logits.numpy()
    lower, upper, weight = (one.numpy() for one in bilinear_taps(len(values), height, torch.device("cpu")))
    flags = values > 0
    occupied = np.logical_or.reduce(flags, axis=1)
    columns = np.flatnonzero(np.logical_or.reduce(flags, axis=0))
    near = np.flatnonzero(occupied[lower] | occupied[upper])
    if not len(near):
        return 0, 0, values[:0]
    top, left = int(near[0]), max(0, int(columns[0]) - 1)
    rows, part = slice(top, int(near[-1]) + 1), values[:, left : int(columns[-1]) + 2]
    above, below = part[lower[rows]], part[upper[rows]]
    return top, left, above + (below - above) * weight[rows, None]
