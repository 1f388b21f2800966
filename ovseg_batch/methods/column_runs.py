"""A mask as the runs of its pixels down the columns, which is what COCO's run lengths hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.tiles import Box
from ovseg_batch.types.arrays import Indices


@dataclass(frozen=True, slots=True)
class ColumnRuns:
    """The runs of the pixels of a mask. A run that reaches the bottom can continue at the top of the next column.

    Attributes:
        size: (H, W) of the image.
        starts, ends: (R,) int64, first pixel of each run and the pixel after it, counted down the columns. No run is
            empty.
    """

    size: tuple[int, int]
    starts: Indices
    ends: Indices

    @classmethod
    def from_lengths(cls, lengths: Indices, size: tuple[int, int]) -> ColumnRuns:
        """Return the runs of a mask from the lengths of runs outside and inside of it, in turn.

        Raises:
            ValueError: the lengths do not describe a mask of this size.
        """
        turns = lengths.cumsum()
        if len(lengths) and (lengths.min() < 0 or turns[-1] > size[0] * size[1]):
            raise ValueError(f"the run lengths describe no mask of {size[0]} × {size[1]} pixels")
        filled = lengths[1::2] > 0
        return cls(size, turns[: len(filled) * 2 : 2][filled], turns[1::2][filled])

    @property
    def turns(self) -> Indices:
        """Where runs start and end, in turn: (2 R,) int64."""
        return np.stack([self.starts, self.ends], axis=1).ravel()

    @property
    def box(self) -> Box:
        """The bounding box as x0, y0, x1, y1; zeros without runs."""
        height = self.size[0]
        if not len(self.starts):
            return 0, 0, 0, 0
        first, last = self.starts // height, (self.ends - 1) // height  # columns
        left, right = int(first[0]), int(last[-1]) + 1
        if (first != last).any():
            return left, 0, right, height
        return left, int((self.starts - first * height).min()), right, int((self.ends - last * height).max())

    def placed(self) -> PlacedMask:
        """Return the mask in its bounding box. The columns of its pixels are contiguous in memory."""
        left, top, right, bottom = self.box
        wide, tall = right - left, bottom - top
        column, row = np.divmod(self.turns, self.size[0])
        turns = (column - left) * tall + (row - top).clip(0, tall)
        flags = np.arange(len(turns) + 1) % 2 == 1
        pixels = flags.repeat(np.diff(turns, prepend=0, append=wide * tall))
        return PlacedMask(pixels.reshape(wide, tall).T, left, top)
