"""Where an edit may change a picture, what it is given to look at, and how it is put back: not a bit is changed
outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ovseg_batch.errors import FailureCode, RowError

Array = np.ndarray[Any, Any]


SQUARE = 1 << 26  # pixels of a square that every image may have
STRETCH = 32  # how many times the pixels of its image a larger square may have


@dataclass(frozen=True, slots=True)
class Frame:
    """A square of a picture, in pixels; it may reach beyond the picture's edges."""

    left: int
    top: int
    side: int

    def cut(self, image: Array) -> Array:
        """The square (side, side, …), mirrored where it lies outside."""
        h, w = image.shape[:2]
        y0, x0, y1, x1 = self._clipped(h, w)
        part = np.ascontiguousarray(image[y0:y1, x0:x1])
        missing = (y0 - self.top, self.top + self.side - y1, x0 - self.left, self.left + self.side - x1)
        return part if not any(missing) else np.pad(part, _pads(missing, image.ndim), mode="symmetric")

    def put(self, image: Array, square: Array) -> None:
        """The square's part that lies in the picture, written into it."""
        y0, x0, y1, x1 = self._clipped(*image.shape[:2])
        image[y0:y1, x0:x1] = square[y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left]

    def _clipped(self, h: int, w: int) -> tuple[int, int, int, int]:
        return max(self.top, 0), max(self.left, 0), min(self.top + self.side, h), min(self.left + self.side, w)


def _pads(missing: tuple[int, int, int, int], dimensions: int) -> list[tuple[int, int]]:
    pads = [(missing[0], missing[1]), (missing[2], missing[3])]
    return pads + [(0, 0)] * (dimensions - 2)


def frame_around(mask: Array, padding: float, least: int) -> Frame:
    """The square that an edit looks at: the mask's box with a share of its longer side around it.

    It lies inside the picture where there is room. A square wider than the picture reaches over its edges evenly.

    Args:
        mask: (H, W) bool, not empty.
        padding: on each side, as a share of the box's longer side.
        least: pixels, the smallest side; a smaller square would be enlarged although the image has more pixels.

    Raises:
        RowError: as `check_square`.
    """
    h, w = mask.shape
    x, y, bw, bh = cv2.boundingRect(mask.view(np.uint8))
    side = max(round(max(bw, bh) * (1 + 2 * padding)), min(least, max(h, w)), 1)
    check_square(side, h, w)
    return Frame(_placed(x + bw / 2, side, w), _placed(y + bh / 2, side, h), side)


def affordable(height: int, width: int) -> int:
    """Return the pixels that an array made for an image may have: the file of a strip must not decide the memory."""
    return max(SQUARE, STRETCH * height * width)


def check_square(side: int, height: int, width: int) -> None:
    """Raises RowError where a square around a mask has far more pixels than the image, which is a strip."""
    if side * side > affordable(height, width):
        raise RowError(
            FailureCode.TOO_LARGE,
            f"a mask needs a square of {side} × {side} pixels, and the image is a strip of {width} × {height}",
        )


def _placed(centre: float, side: int, length: int) -> int:
    if side >= length:
        return -((side - length) // 2)
    return int(np.clip(round(centre - side / 2), 0, length - side))


def widened(mask: Array, dilation: int) -> Array:
    """A mask (h, w) of bool, wider by so many pixels on every side."""
    if dilation <= 0:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * dilation + 1, 2 * dilation + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc)).astype(bool)


def feathered(region: Array, feather: float) -> Array:
    """How much of the new picture shows at each pixel, (h, w) float32: 0 outside the region, rising to 1 inside it.

    Args:
        region: (h, w) bool.
        feather: pixels from the edge inwards over which it rises; edges of the array are no edges of the region.
    """
    if feather <= 0:
        return region.astype(np.float32)
    padded = np.pad(region.astype(np.uint8), 1, mode="edge")
    if padded.all():
        return region.astype(np.float32)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    return np.asarray(np.minimum(depth / np.float32(feather + 1), 1), np.float32)


def seamless(image: Array, painted: Array, known: Array) -> Array:
    """What was painted, its colours moved so that they meet those around it.

    Where the picture is known, what it differs by from the painting is known too; the difference is carried on smoothly
    into the rest and added (the membrane of Pérez et al. 2003, Poisson image editing, by push-pull, without a solver).

    Args:
        image: (h, w, 3) uint8 or uint16.
        painted: (h, w, 3) float32 in the image's range, `known` too.
        known: (h, w) bool, the pixels of the image that say something.
    """
    if not known.any():
        return painted
    differs = np.where(known[..., None], image.astype(np.float32) - painted, 0)
    return painted + _carried_on(differs, known.astype(np.float32))


def _carried_on(values: Array, weight: Array) -> Array:
    """Values (h, w, 3) where the weight (h, w) is 1, and smooth between them: averages of halves of halves of them."""
    h, w = weight.shape
    if weight.min() > 0:
        return values
    half = -(-w // 2), -(-h // 2)
    share = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    summed = cv2.resize(values * weight[..., None], half, interpolation=cv2.INTER_AREA)
    coarse = summed / np.maximum(share, 1e-6)[..., None]
    wide = cv2.resize(_carried_on(coarse, (share > 0).astype(np.float32)), (w, h), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.where(weight[..., None] > 0, values, wide))


def blend(image: Array, new: Array, weight: Array) -> Array:
    """The picture with something new laid in; where the weight is 0 its very bits.

    Args:
        image: (h, w, 3) uint8 or uint16.
        new: (h, w, 3), the same depth or float in its range.
        weight: (h, w) float in [0, 1].
    """
    out = image.copy()
    changed = weight > 0
    share = weight[changed][:, None]
    mixed = image[changed] * (1 - share) + new[changed].astype(np.float32) * share
    out[changed] = np.rint(np.clip(mixed, 0, np.iinfo(image.dtype).max)).astype(image.dtype)
    return out
