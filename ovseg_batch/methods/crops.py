"""Crop masked regions to images for a CLIP model that encodes whole images.

Source: García García 2025, section 3.2.2.2: direct encoding of the isolated crop at several sizes.
"""

from __future__ import annotations

import cv2
import numpy as np

from ovseg_batch.methods.blending import check_square
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.types.arrays import Pixels

CONTEXT = 0.1  # padding around the box, as a share of its longer side


def isolated_crop(image: Pixels, mask: PlacedMask, fill: tuple[int, int, int], keep: float) -> Pixels:
    """Return the square around a mask. Pixels outside the mask are faded to one colour.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: the mask in its bounding box, which has at least one pixel.
        fill: RGB of the colour. Pixels beyond the image have it too.
        keep: weight of the image outside the mask: 0 isolates the mask, 1 keeps the image unchanged.

    Returns:
        (s, s, 3) uint8.

    Raises:
        RowError: as `check_square`.
    """
    (x0, y0, x1, y1), (height, width) = mask.box, image.shape[:2]
    side = max(y1 - y0, x1 - x0)
    side += 2 * round(CONTEXT * side)
    check_square(side, height, width)
    top, left = (y0 + y1 - side) // 2, (x0 + x1 - side) // 2
    square = np.empty((side, side, 3), np.uint8)
    square[:] = fill
    a, b = max(top, 0), max(left, 0)
    c, d = min(top + side, height), min(left + side, width)
    inside, part = np.zeros((c - a, d - b, 1), bool), image[a:c, b:d]
    inside[mask.shifted(-b, -a).place] = mask.pixels[..., None]
    colour = np.array(fill, np.float32)
    faded = part if keep == 1 else (keep * part + (1 - keep) * colour).astype(np.uint8)
    square[a - top : c - top, b - left : d - left] = np.where(inside, part, faded)
    return square


def resized_crop(crop: Pixels, side: int) -> Pixels:
    """Resize a crop to (side, side, 3) uint8: area interpolation to shrink, cubic interpolation to enlarge."""
    shrinks = crop.shape[0] > side
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(crop, (side, side), interpolation=how), np.uint8)
