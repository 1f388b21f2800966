"""A mask as the part of it that lies in a box, so that its cost follows its own size and not the image's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ovseg_batch.methods.tiles import Box
from ovseg_batch.types.arrays import AnyArray, Mask


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

    def paint(self, image: AnyArray, value: int) -> None:
        """Set the pixels of the mask in an array (H, W) of the image to a value."""
        np.copyto(image[self.place], value, where=self.pixels)

    def whole(self, size: tuple[int, int]) -> Mask:
        """Return the mask of the whole image (H, W) bool."""
        mask = np.zeros(size, bool)
        mask[self.place] = self.pixels
        return mask
