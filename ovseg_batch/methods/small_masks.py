"""Masks at the size of a thumbnail, from the part of the image around them."""

from __future__ import annotations

import math

import cv2
import numpy as np

from ovseg_batch.methods.placed_mask import PlacedMask


def small_mask(mask: PlacedMask, size: tuple[int, int], small: tuple[int, int]) -> PlacedMask:
    """Return where a mask covers more than half of a pixel of a smaller image.

    It equals `cv2.resize` of the mask of the whole image with `INTER_AREA`, rounded.

    Args:
        mask: the mask in its bounding box.
        size: (H, W) of the image.
        small: (h, w), at most as large.
    """
    (top, bottom, first_row, rows), (left, right, first_column, columns) = (
        _around(place.start, place.stop, *sides) for place, *sides in zip(mask.place, size, small, strict=True)
    )
    if not mask.pixels.size:
        return mask
    part = np.zeros((bottom - top, right - left), np.uint8)
    mask.shifted(-left, -top).paint(part, 1)
    return PlacedMask(cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA) > 0, first_column, first_row)


def _around(start: int, stop: int, side: int, small: int) -> tuple[int, int, int, int]:
    """Return a range of pixels around another that begins and ends where pixels of both images do.

    Returns:
        first pixel and end of the range, its first pixel in the smaller image, and their number there.
    """
    common = math.gcd(side, small)
    whole, part = side // common, small // common
    first, end = start // whole, -(-stop // whole)
    return first * whole, end * whole, first * part, (end - first) * part
