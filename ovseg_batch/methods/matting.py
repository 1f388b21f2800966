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

PRIOR = 10000.0  # λ, in squared steps of 1/255: where |F - B| is over 100, colours count for more than the mask
REACH = 2  # colours are taken from so many bands around
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
    alpha = mask.astype(image.dtype) * image.dtype.type(np.iinfo(image.dtype).max)
    colours = image
    if band > 0:
        colours = image.copy()
        for core, around in _tiles(mask, band):
            _soften_tile(image[around], mask[around], band, core, alpha[around], colours[around])
    return alpha, colours


def _tiles(mask: Array, band: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """The tiles that an edge passes or comes near, each as (its pixels within the next, what its pixels depend on)."""
    margin = (REACH + 1) * band + 1
    bits = mask.view(np.uint8)
    x, y, w, h = cv2.boundingRect(bits)
    if w == 0:
        return
    first = max(0, y - band), max(0, x - band)
    last = min(mask.shape[0], y + h + band), min(mask.shape[1], x + w + band)
    for top in range(first[0], last[0], TILE):
        for left in range(first[1], last[1], TILE):
            core = slice(top, min(top + TILE, last[0])), slice(left, min(left + TILE, last[1]))
            around = tuple(
                slice(max(0, part.start - margin), min(part.stop + margin, side))
                for part, side in zip(core, mask.shape, strict=True)
            )
            if cv2.minMaxLoc(bits[around])[:2] == (0.0, 1.0):
                inside = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(core, around, strict=True))
                yield (inside[0], inside[1]), (around[0], around[1])


def _soften_tile(image: Array, mask: Array, band: int, core: tuple[slice, slice], alpha: Array, colours: Array) -> None:
    """Write alpha and colours of the band's pixels within `core`."""
    top = np.iinfo(image.dtype).max
    bits = np.ascontiguousarray(mask).view(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
    inside, touched = cv2.erode(bits, disc), cv2.dilate(bits, disc)
    in_core = np.zeros_like(bits)
    in_core[core] = inside[core] != touched[core]
    where = np.nonzero(in_core)
    if not len(where[0]):
        return
    front, has_front = _local_mean(image, inside, REACH * band, where)
    back, has_back = _local_mean(image, 1 - touched, REACH * band, where)
    prior = cv2.GaussianBlur(bits.astype(np.float32), (0, 0), 0.4 * band)[where]
    pixels = image[where].astype(np.float32)
    apart, from_back = front - back, pixels - back
    weight = np.float32(PRIOR * (top / 255) ** 2)
    share = ((from_back * apart).sum(1) + weight * prior) / ((apart * apart).sum(1) + weight)
    share = np.clip(np.where(has_front & has_back, share, prior), 0, 1)
    found = np.rint(share * top).astype(image.dtype)
    unexplained = from_back - share[:, None] * apart
    own = np.rint(np.clip(front + share[:, None] * unexplained, 0, top)).astype(image.dtype)
    mixed = (has_front & (found > 0) & (found < top))[:, None]
    alpha[where] = found
    colours[where] = np.where(mixed, own, image[where])


def _local_mean(image: Array, chosen: Array, radius: int, where: tuple[Array, ...]) -> tuple[Array, Array]:
    """Mean colour (n, 3) of the chosen pixels around each of n pixels, and (n,) bool: whether there are any."""
    side = (2 * radius + 1, 2 * radius + 1)
    shown = cv2.bitwise_and(image, image, mask=chosen)
    weight, total = (
        cv2.boxFilter(part, cv2.CV_32F, side, normalize=False, borderType=cv2.BORDER_CONSTANT)[where]
        for part in (chosen, shown)
    )
    return total / np.maximum(weight, 1)[:, None], weight > 0
