"""Compute alpha and foreground colours in a narrow band along the edge of a binary mask.

In the band, every pixel is modelled as a mixture of two local colours: the foreground F, a mean over pixels well inside
the mask, and the background B, a mean over pixels well outside. Alpha minimises the squared error of the mixture, with
the slightly blurred mask α₀ as a prior:

    α = ((I - B)·(F - B) + λ α₀) / (|F - B|² + λ)

Sources: the alpha step of Chuang et al., A Bayesian Approach to Digital Matting, CVPR 2001, eq. 10, with one colour on
each side; the correction of the foreground colour by the residual of the mixture from Forte, Approximate Fast
Foreground Colour Estimation, ICIP 2021 (blur fusion). Where the two colours are similar, the prior dominates. Pixels
outside the band are not changed.

A matting network can give alpha instead. It receives a trimap whose unknown part is the band.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from ovseg_batch.methods.matte_tiles import UNKNOWN
from ovseg_batch.types.arrays import DeepPixels, Indices, Mask, Numbers, Pixels

PRIOR = 10000.0  # λ, in squared steps of 1/255; the colours dominate the prior where |F - B| > 100
REACH = 2  # radius of the local colour means, in bands
TILE = 512
MIN_BAND = 2
BAND, NETWORK_BAND = 0.005, 0.02  # default bands as shares of the longer side; strands of hair need the wider one


def band_width(height: int, width: int, network: bool = False) -> int:
    """Return the default width in pixels of the band on each side of the edge: 0.5 % of the longer side.

    Args:
        network: whether a matting network computes alpha; then it is 2 %.
    """
    return max(MIN_BAND, round((NETWORK_BAND if network else BAND) * max(height, width)))


def trimap(mask: Mask, band: int) -> Pixels:
    """Return the trimap of a mask for a matting network.

    Args:
        mask: (H, W) bool.
        band: pixels at most this far from the other side of the mask's edge are unknown.

    Returns:
        (H, W) uint8: 255 inside, 0 outside, and `UNKNOWN` in the band.
    """
    known = mask.astype(np.uint8) * 255
    for core, around in _tiles(mask, band):
        bits, part = np.ascontiguousarray(mask[around]).view(np.uint8), known[around]
        for side in (bits, 1 - bits):
            far = cv2.distanceTransform(side, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[core]
            part[core][(far > 0) & (far < band + 0.5)] = UNKNOWN
    return known


def soften(
    image: DeepPixels, mask: Mask, band: int, matte: tuple[Numbers, Pixels] | None = None
) -> tuple[DeepPixels, DeepPixels]:
    """Compute the alpha and the foreground colours of a mask.

    Args:
        image: (H, W, 3) uint8 or uint16.
        mask: (H, W) bool.
        band: pixels on each side of the mask's edge; 0 returns the mask unchanged.
        matte: the alpha of a network, (H, W) float32 in [0, 1], and the trimap from which it was computed. Only the
            unknown pixels are read. None: alpha is computed from the local colours.

    Returns:
        alpha (H, W) and colours (H, W, 3), both of the image's dtype. Colours equal the image where alpha is 0 or
        maximal.
    """
    alpha = mask.astype(image.dtype) * image.dtype.type(np.iinfo(image.dtype).max)
    colours = image
    if band > 0:
        colours = image.copy()
        for core, around in _tiles(mask, band):
            given = None if matte is None else (matte[0][around], matte[1][around])
            _soften_tile(image[around], mask[around], band, core, given, alpha[around], colours[around])
    return alpha, colours


def _tiles(mask: Mask, band: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Yield the tiles near an edge. Each is a pair: the pixels of the tile within its context, and the context."""
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


def _eroded_dilated(bits: Pixels, band: int) -> tuple[Pixels, Pixels]:
    """Return a mask of uint8 0 and 1, eroded and dilated by a disc with a radius of `band` pixels."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
    return np.asarray(cv2.erode(bits, disc), np.uint8), np.asarray(cv2.dilate(bits, disc), np.uint8)


def _soften_tile(
    image: DeepPixels,
    mask: Mask,
    band: int,
    core: tuple[slice, slice],
    matte: tuple[Numbers, Pixels] | None,
    alpha: DeepPixels,
    colours: DeepPixels,
) -> None:
    """Write alpha and colours of the band's pixels within `core`."""
    top = np.iinfo(image.dtype).max
    bits = np.ascontiguousarray(mask).view(np.uint8)
    if matte is None:
        inside, touched = _eroded_dilated(bits, band)
    else:
        inside, touched = (side.astype(np.uint8) for side in (matte[1] == 255, matte[1] > 0))
    in_core = np.zeros_like(bits)
    in_core[core] = inside[core] != touched[core]
    where = np.nonzero(in_core)
    if not len(where[0]):
        return
    front, has_front = _local_mean(image, inside, REACH * band, where)
    back, has_back = _local_mean(image, 1 - touched, REACH * band, where)
    pixels = image[where].astype(np.float32)
    apart, from_back = front - back, pixels - back
    if matte is None:
        prior = cv2.GaussianBlur(bits.astype(np.float32), (0, 0), 0.4 * band)[where]
        weight = np.float32(PRIOR * (top / 255) ** 2)
        share = ((from_back * apart).sum(1) + weight * prior) / ((apart * apart).sum(1) + weight)
        share = np.clip(np.where(has_front & has_back, share, prior), 0, 1)
    else:
        share = np.clip(matte[0][where], 0, 1)
    found = np.rint(share * top).astype(image.dtype)
    unexplained = from_back - share[:, None] * apart
    own = np.rint(np.clip(front + share[:, None] * unexplained, 0, top)).astype(image.dtype)
    mixed = (has_front & (found > 0) & (found < top))[:, None]
    alpha[where] = found
    colours[where] = np.where(mixed, own, image[where])


def _local_mean(image: DeepPixels, chosen: Pixels, radius: int, where: tuple[Indices, ...]) -> tuple[Numbers, Mask]:
    """Return the mean colour (n, 3) of the chosen pixels around n pixels, and whether there are any: (n,) bool."""
    side = (2 * radius + 1, 2 * radius + 1)
    shown = cv2.bitwise_and(image, image, mask=chosen)
    weight, total = (
        cv2.boxFilter(part, cv2.CV_32F, side, normalize=False, borderType=cv2.BORDER_CONSTANT)[where]
        for part in (chosen, shown)
    )
    return total / np.maximum(weight, 1)[:, None], weight > 0
