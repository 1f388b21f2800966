"""From a mask that says yes or no to an alpha that says how much, in a narrow band along the edge, and to colours
without the old background.

In the band every pixel is taken for a mixture of two colours that are known nearby: the foreground's, a mean over
pixels well inside the mask, and the background's, over pixels well outside. Its alpha is the one that explains the
pixel best, held back by the mask itself, slightly blurred, as a prior:

    α = ((I - B)·(F - B) + λ α₀) / (|F - B|² + λ)

which is the step for alpha of Bayesian matting (Chuang et al. 2001, eq. 10) with one colour on each side. The
foreground's own colour is then the local one, corrected by what the mixture leaves unexplained (Forte 2021, blur
fusion). Where the two colours are alike the prior decides, and the picture is left alone outside the band.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]

PRIOR = 5000.0  # λ, in squared steps of 1/255: from |F - B| of about 70 on, colours decide rather than the mask
REACH = 3  # colours are taken from so many bands around
TILE = 512
MIN_BAND = 2


def band_width(height: int, width: int) -> int:
    """Pixels on each side of the edge in which alpha is found unless the settings say: 0.5 % of the longer side."""
    return max(MIN_BAND, round(0.005 * max(height, width)))


def soften(image: Array, mask: Array, band: int) -> tuple[Array, Array]:
    """Alpha and foreground colours of what a mask shows.

    Args:
        image: (H, W, 3) uint8 or uint16.
        mask: (H, W) bool.
        band: pixels on each side of the mask's edge; 0 leaves the mask as it is.

    Returns:
        alpha (H, W) of the image's depth, and colours (H, W, 3): the image's own wherever alpha is full or none.
    """
    top = np.iinfo(image.dtype).max
    alpha = mask.astype(image.dtype) * image.dtype.type(top)
    colours = image
    if band > 0:
        colours = image.copy()
        for core, around in _tiles(mask, band):
            inside = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(core, around, strict=True))
            found, colour = _two_colours(image[around], mask[around], band)
            alpha[core] = np.rint(found[inside] * top).astype(image.dtype)
            mixed = (alpha[core] > 0) & (alpha[core] < top)
            colours[core][mixed] = np.rint(colour[inside][mixed]).astype(image.dtype)
    return alpha, colours


def _tiles(mask: Array, band: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """The tiles that an edge passes or comes near, each as (its pixels, these and what its pixels depend on)."""
    h, w = mask.shape
    margin = (REACH + 1) * band + 1
    bits = mask.view(np.uint8)
    for top in range(0, h, TILE):
        for left in range(0, w, TILE):
            core = slice(top, min(top + TILE, h)), slice(left, min(left + TILE, w))
            around = tuple(
                slice(max(0, part.start - margin), min(part.stop + margin, side))
                for part, side in zip(core, (h, w), strict=True)
            )
            if cv2.minMaxLoc(bits[around])[:2] == (0.0, 1.0):
                yield core, (around[0], around[1])


def _two_colours(image: Array, mask: Array, band: int) -> tuple[Array, Array]:
    """Alpha (h, w) in [0, 1] and colours (h, w, 3), both float32, of one tile."""
    scale = np.iinfo(image.dtype).max / 255
    pixels = image.astype(np.float32)
    bits = mask.view(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
    inside, touched = cv2.erode(bits, disc), cv2.dilate(bits, disc)
    front, has_front = _local_mean(pixels, inside, REACH * band)
    back, has_back = _local_mean(pixels, 1 - touched, REACH * band)
    apart, from_back = front - back, pixels - back
    prior = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.4 * band)
    weight = np.float32(PRIOR * scale * scale)
    share = (_dot(from_back, apart) + weight * prior) / (_dot(apart, apart) + weight)
    share = np.clip(np.where(has_front & has_back, share, prior), 0, 1)
    alpha = np.where(inside != touched, share, mask).astype(np.float32)
    unexplained = pixels - back - alpha[..., None] * apart
    colour = np.where(has_front[..., None], front + alpha[..., None] * unexplained, pixels)
    return alpha, np.clip(colour, 0, np.iinfo(image.dtype).max)


def _local_mean(pixels: Array, where: Array, radius: int) -> tuple[Array, Array]:
    """Mean colour (h, w, 3) over the chosen pixels of each one's surroundings, and (h, w) bool: whether it has any."""
    side = (2 * radius + 1, 2 * radius + 1)
    chosen = where.astype(np.float32)
    weight = cv2.boxFilter(chosen, -1, side, borderType=cv2.BORDER_CONSTANT)
    total = cv2.boxFilter(pixels * chosen[..., None], -1, side, borderType=cv2.BORDER_CONSTANT)
    return total / np.maximum(weight, 1e-6)[..., None], weight > 0.5 / (side[0] * side[1])


def _dot(a: Array, b: Array) -> Array:
    product: Array = np.einsum("hwc,hwc->hw", a, b)
    return product
