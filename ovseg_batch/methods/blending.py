"""Cut the square around a mask for an edit, and blend the edited pixels back. Pixels outside the mask stay bitwise
equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.types.arrays import DeepPixels, Floats, Mask, Numbers, Scalar

FREE_SQUARE = 1 << 26  # pixels of a square that is always allowed
STRETCH = 32  # a larger square may have at most this many times the pixels of the image


@dataclass(frozen=True, slots=True)
class Frame:
    """A square of an image, in pixels. It may extend beyond the image."""

    left: int
    top: int
    side: int

    def cut(self, image: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the square (side, side, …). Pixels outside the image are mirrored."""
        h, w = image.shape[:2]
        y0, x0, y1, x1 = self._clipped(h, w)
        part = np.ascontiguousarray(image[y0:y1, x0:x1])
        missing = (y0 - self.top, self.top + self.side - y1, x0 - self.left, self.left + self.side - x1)
        return part if not any(missing) else np.pad(part, _pads(missing, image.ndim), mode="symmetric")

    def put(self, image: NDArray[Scalar], square: NDArray[Scalar]) -> None:
        """Write the part of the square that lies in the image into the image."""
        y0, x0, y1, x1 = self._clipped(*image.shape[:2])
        image[y0:y1, x0:x1] = square[y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left]

    def _clipped(self, h: int, w: int) -> tuple[int, int, int, int]:
        return max(self.top, 0), max(self.left, 0), min(self.top + self.side, h), min(self.left + self.side, w)


def _pads(missing: tuple[int, int, int, int], dimensions: int) -> list[tuple[int, int]]:
    pads = [(missing[0], missing[1]), (missing[2], missing[3])]
    return pads + [(0, 0)] * (dimensions - 2)


def frame_around(mask: Mask, padding: float, least: int) -> Frame:
    """Return the square that is the context of an edit: the mask's box, padded by a share of its longer side.

    The square is shifted into the image if it fits. A square wider than the image extends beyond both edges equally.

    Args:
        mask: (H, W) bool, not empty.
        padding: padding on each side, as a share of the box's longer side.
        least: smallest side in pixels. A smaller square would be upsampled although the image has more pixels.

    Raises:
        RowError: as `check_square`.
    """
    h, w = mask.shape
    x, y, bw, bh = cv2.boundingRect(mask.view(np.uint8))
    side = max(round(max(bw, bh) * (1 + 2 * padding)), min(least, max(h, w)), 1)
    check_square(side, h, w)
    return Frame(_placed(x + bw / 2, side, w), _placed(y + bh / 2, side, h), side)


def affordable(height: int, width: int) -> int:
    """Return the largest number of pixels of an array for an image. It bounds the memory for images that are strips."""
    return max(FREE_SQUARE, STRETCH * height * width)


def check_square(side: int, height: int, width: int) -> None:
    """Raise RowError where a square around a mask has far more pixels than the image. Such images are strips."""
    if side * side > affordable(height, width):
        raise RowError(
            FailureCode.TOO_LARGE,
            f"a mask needs a square of {side} × {side} pixels, and the image is a strip of {width} × {height}",
        )


def _placed(centre: float, side: int, length: int) -> int:
    if side >= length:
        return -((side - length) // 2)
    return int(np.clip(round(centre - side / 2), 0, length - side))


def widened(mask: Mask, dilation: int) -> Mask:
    """Return a mask (h, w) bool, dilated by `dilation` pixels on every side."""
    if dilation <= 0:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * dilation + 1, 2 * dilation + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc)).astype(bool)


def feathered(region: Mask, feather: float) -> Floats:
    """Return the blending weight of the edit at each pixel: (h, w) float32, 0 outside the region, rising to 1 inside.

    Args:
        region: (h, w) bool.
        feather: width of the ramp in pixels, from the edge of the region inwards. The border of the array is not an
            edge.
    """
    if feather <= 0:
        return region.astype(np.float32)
    padded = np.pad(region.astype(np.uint8), 1, mode="edge")
    if padded.all():
        return region.astype(np.float32)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    return np.asarray(np.minimum(depth / np.float32(feather + 1), 1), np.float32)


def seamless(image: DeepPixels, painted: Numbers, known: Mask) -> Numbers:
    """Return generated pixels with colours shifted to match the surrounding pixels.

    The difference between image and generated pixels is measured where the image is known, interpolated smoothly, and
    added. This approximates the membrane interpolant of Pérez, Gangnet and Blake, Poisson Image Editing, 2003, eq. 2,
    by the push-pull algorithm of Gortler et al., The Lumigraph, 1996.

    Args:
        image: (h, w, 3) uint8 or uint16.
        painted: (h, w, 3) float32 in the image's range, `known` too.
        known: (h, w) bool, the pixels of the image that are valid.
    """
    if not known.any():
        return painted
    differs = np.where(known[..., None], image.astype(np.float32) - painted, 0)
    return painted + _carried_on(differs, known.astype(np.float32))


def _carried_on(values: Numbers, weight: Numbers) -> Numbers:
    """Interpolate values (h, w, 3) from the pixels with weight (h, w) 1, by recursive averages at half the size."""
    h, w = weight.shape
    if weight.min() > 0:
        return values
    half = -(-w // 2), -(-h // 2)
    share = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    summed = cv2.resize(values * weight[..., None], half, interpolation=cv2.INTER_AREA)
    coarse = summed / np.maximum(share, 1e-6)[..., None]
    wide = cv2.resize(_carried_on(coarse, (share > 0).astype(np.float32)), (w, h), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.where(weight[..., None] > 0, values, wide))


def blend(image: DeepPixels, new: DeepPixels | Numbers, weight: Numbers) -> DeepPixels:
    """Blend new pixels into an image. Pixels with weight 0 stay bitwise equal.

    Args:
        image: (h, w, 3) uint8 or uint16.
        new: (h, w, 3), of the same dtype, or float in its range.
        weight: (h, w) float in [0, 1].
    """
    out = image.copy()
    changed = weight > 0
    share = weight[changed][:, None]
    mixed = image[changed] * (1 - share) + new[changed].astype(np.float32) * share
    out[changed] = np.rint(np.clip(mixed, 0, np.iinfo(image.dtype).max)).astype(image.dtype)
    return out
