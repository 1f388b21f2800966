"""Masks at the size of a thumbnail, computed from their runs."""

from __future__ import annotations

import math

import cv2
import numpy as np

from ovseg_batch.methods.column_runs import ColumnRuns
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.types.arrays import Doubles

ROUNDING = 1e-5  # more than the error of OpenCV's sums in float32, as a share of a pixel


def small_mask(runs: ColumnRuns, small: tuple[int, int]) -> PlacedMask:
    """Return where a mask covers more than half of a pixel of a smaller image.

    It equals `cv2.resize` of the whole mask with `INTER_AREA`, rounded.

    Args:
        runs: the mask.
        small: (h, w), at most as large as the image, and below 1000.
    """
    if not len(runs.starts):
        return runs.placed()
    left, top, covered = _covered(runs, small)
    if (abs(covered - 0.5) < ROUNDING).any():  # the order of OpenCV's sums decides
        return _resized(runs.placed(), runs.size, small)
    return PlacedMask(covered > 0.5, left, top)


def _covered(runs: ColumnRuns, small: tuple[int, int]) -> tuple[int, int, Doubles]:
    """Return the share of each pixel of a smaller image that a mask covers, in a box around the mask.

    Pixels of both images are whole multiples of the unit of length, so all sums are exact.

    Returns:
        x and y of the box, and the shares (rows, columns) in [0, 1].
    """
    (height, width), (h, w) = runs.size, small
    left, top, right, bottom = runs.box
    x, y, columns, rows = left * w // width, top * h // height, -(-right * w // width), -(-bottom * h // height)
    rows -= y
    column, row = np.divmod(runs.turns, height)
    at = np.maximum(row * h, y * height)
    cell = at // height
    place = (column - left) * rows + cell - y
    signs = np.resize([1.0, -1.0], len(place))
    count = (right - left) * rows
    turned = np.bincount(place, signs, count)[:count]
    entered = np.bincount(place, signs * ((cell + 1) * height - at), count)[:count]
    tall = (entered + height * (turned.cumsum() - turned)).reshape(right - left, rows)
    begin = np.arange(left, right) * w
    own = begin // width  # the column of the smaller image in which each column begins
    wide = np.minimum((own + 1) * width - begin, w)
    first = np.flatnonzero(np.diff(own, prepend=-1))
    covered = np.zeros((columns - x + 1, rows))
    covered[own[first] - x] = np.add.reduceat(tall * wide[:, None], first)
    covered[own[first] - x + 1] += np.add.reduceat(tall * (w - wide)[:, None], first)
    return x, y, covered[:-1].T / (height * width)


def _resized(mask: PlacedMask, size: tuple[int, int], small: tuple[int, int]) -> PlacedMask:
    """Resize a mask of an image of (H, W) pixels with OpenCV, with as little around it as gives the same result."""
    (top, bottom, y, rows), (left, right, x, columns) = (
        _around(place.start, place.stop, *sides) for place, *sides in zip(mask.place, size, small, strict=True)
    )
    part = np.zeros((bottom - top, right - left), np.uint8)
    mask.shifted(-left, -top).paint(part, 1)
    return PlacedMask(cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA) > 0, x, y)


def _around(start: int, stop: int, side: int, small: int) -> tuple[int, int, int, int]:
    """Return a range of pixels around another that begins and ends where pixels of both images do.

    Returns:
        first pixel and end of the range, its first pixel in the smaller image, and their number there.
    """
    common = math.gcd(side, small)
    whole, part = side // common, small // common
    first, end = start // whole, -(-stop // whole)
    return first * whole, end * whole, first * part, (end - first) * part
