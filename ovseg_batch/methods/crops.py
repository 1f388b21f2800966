"""Crop masked regions to images for a CLIP model that encodes whole images.

Source: García García 2025, section 3.2.2.2: direct encoding of the isolated crop at several sizes.
"""

from __future__ import annotations

import cv2
import numpy as np

from ovseg_batch.methods.blending import check_square
from ovseg_batch.types.arrays import Mask, Pixels

CONTEXT = 0.1  # padding around the box, as a share of its longer side


def isolated_crop(image: Pixels, mask: Mask, fill: tuple[int, int, int], keep: float) -> Pixels:
    """Return the square around a mask. Pixels outside the mask are faded to one colour.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool with at least one pixel.
        fill: RGB of the colour. Pixels beyond the image have it too.
        keep: weight of the image outside the mask: 0 isolates the mask, 1 keeps the image unchanged.

    Returns:
        (s, s, 3) uint8.

    Raises:
        RowError: as `check_square`.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = max(y1 - y0, x1 - x0)
    side += 2 * round(CONTEXT * side)
    check_square(side, *mask.shape)
    top, left = (y0 + y1 - side) // 2, (x0 + x1 - side) // 2
    square = np.empty((side, side, 3), np.uint8)
    square[:] = fill
    a, b = max(top, 0), max(left, 0)
    c, d = min(top + side, mask.shape[0]), min(left + side, mask.shape[1])
    inside, part = mask[a:c, b:d, None], image[a:c, b:d]
    colour = np.array(fill, np.float32)
    faded = part if keep == 1 else (keep * part + (1 - keep) * colour).astype(np.uint8)
    square[a - top : c - top, b - left : d - left] = np.where(inside, part, faded)
    return square


def resized_crop(crop: Pixels, side: int) -> Pixels:
    """Resize a crop to (side, side, 3) uint8: area interpolation to shrink, cubic interpolation to enlarge."""
    shrinks = crop.shape[0] > side
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(crop, (side, side), interpolation=how), np.uint8)
