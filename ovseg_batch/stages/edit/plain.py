"""Edits without a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from PIL import ImageColor

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io import rle
from ovseg_batch.io.pictures import Picture
from ovseg_batch.methods import fills
from ovseg_batch.methods.blending import blend, feathered, frame_around, widened
from ovseg_batch.methods.matting import band_width, soften, trimap
from ovseg_batch.settings import EditConfig
from ovseg_batch.settings.tree import AlphaConfig, CropConfig, FillConfig
from ovseg_batch.types.arrays import DeepPixels, Mask, Numbers, Pixels

Matte = Callable[[Pixels, Pixels], Numbers]  # (H, W, 3) uint8 and its trimap → alpha (H, W) float32 in [0, 1]


def plain_edit(
    picture: Picture,
    counts: Sequence[bytes],
    edit: EditConfig,
    context: float,
    keeps: bool,
    background: Pixels | None,
    matte: Matte | None = None,
) -> tuple[Picture, bool]:
    """Edit an image in the mode of the settings. Return it, and whether the edit has an effect.

    Args:
        counts: RLE of the masks of what stays when `keeps`, else of what goes.
        context: `inpaint.context`.
        background: (h, w, 3) uint8 RGB, for `fill.kind: image`.
        matte: computes alpha in the band. None: local colours decide.

    Returns:
        the edited picture; and False where what is kept is the whole picture, or where `mask` makes one grey level.

    Raises:
        RowError: nothing is left of the picture, to close a hole from or to show.
    """
    mode, (h, w) = edit.mode, picture.pixels.shape[:2]
    mask = rle.union(counts, h, w)
    if mode == "crop":
        part = _crop(picture, mask if keeps else ~mask, edit.crop)
        return part, part.pixels.shape != picture.pixels.shape
    if mode in ("cutout", "mask"):
        shown = mask if keeps else ~mask
        alpha, colours = _soft(picture, shown, edit.alpha, matte)
        if mode == "mask":
            return _mask(alpha), bool(shown.any() and not shown.all())
        return _cutout(picture, alpha, colours), not shown.all()
    if keeps:
        alpha, colours = _soft(picture, mask, edit.alpha, matte)
        new = _filling(picture.pixels, mask, edit.fill, background)
        share = 1 - alpha.astype(np.float32) / np.iinfo(alpha.dtype).max
        return Picture(blend(colours, new, share), picture.alpha, picture.icc, picture.exif), not mask.all()
    return _replaced(picture, region_of(counts, (h, w), edit), edit, context, background), True


def region_of(counts: Sequence[bytes], shape: tuple[int, int], edit: EditConfig) -> Mask:
    """Return the pixels that an edit may change: the masks, or the boxes around them, widened; (H, W) bool."""
    if edit.shape == "mask":
        return widened(rle.union(counts, *shape), edit.dilation)
    region = np.zeros(shape, bool)
    for one in counts:
        x, y, w, h = (int(side) for side in rle.bounding_box(one, *shape))
        top, left = max(0, y - edit.dilation), max(0, x - edit.dilation)
        region[top : y + h + edit.dilation, left : x + w + edit.dilation] = True
    return region


def refuse_everything(region: Mask) -> None:
    """Raise RowError where a region covers the whole image, so that no context is left."""
    if region.all():
        raise RowError(FailureCode.NO_EDIT, "the dilated mask covers the whole image: no context is left")


def _soft(picture: Picture, mask: Mask, settings: AlphaConfig, matte: Matte | None) -> tuple[DeepPixels, DeepPixels]:
    height, width = mask.shape
    band = (settings.band or band_width(height, width, matte is not None)) if settings.soft else 0
    pixels = picture.pixels
    given = None
    if matte is not None and band > 0:
        eight = np.asarray(pixels if pixels.dtype == np.uint8 else pixels >> 8, np.uint8)
        known = trimap(mask, band)
        given = matte(eight, known), known
    alpha, colours = soften(pixels, mask, band, given)
    return alpha, colours if settings.decontaminate else picture.pixels


def _cutout(picture: Picture, alpha: DeepPixels, colours: DeepPixels) -> Picture:
    if picture.alpha is not None:
        alpha = np.minimum(alpha, picture.alpha)
    shown = np.asarray(cv2.bitwise_and(colours, colours, mask=(alpha > 0).view(np.uint8)), colours.dtype)
    return Picture(shown, alpha, picture.icc, picture.exif)


def _mask(alpha: DeepPixels) -> Picture:
    return Picture(alpha if alpha.dtype == np.uint8 else (alpha >> 8).astype(np.uint8))


def _crop(picture: Picture, mask: Mask, crop: CropConfig) -> Picture:
    h, w = mask.shape
    if not mask.any():
        raise RowError(FailureCode.NO_EDIT, "the masks to drop cover the whole image: nothing is left to crop")
    x, y, bw, bh = cv2.boundingRect(mask.view(np.uint8))
    margin = round(crop.margin * max(bw, bh))
    left, top, right, bottom = x - margin, y - margin, x + bw + margin, y + bh + margin
    if crop.square:
        side = min(max(right - left, bottom - top), h, w)
        side = max(side, bw, bh) if max(bw, bh) <= min(h, w) else side
        left = min(max((left + right - side) // 2, 0), w - side)
        top = min(max((top + bottom - side) // 2, 0), h - side)
        right, bottom = left + side, top + side
    part = slice(max(top, 0), min(bottom, h)), slice(max(left, 0), min(right, w))
    alpha = None if picture.alpha is None else np.ascontiguousarray(picture.alpha[part])
    return Picture(np.ascontiguousarray(picture.pixels[part]), alpha, picture.icc, picture.exif)


def _replaced(picture: Picture, region: Mask, edit: EditConfig, context: float, background: Pixels | None) -> Picture:
    """Inpaint or fill the region, piece by piece. Other pixels stay bitwise equal."""
    if edit.mode == "erase":
        refuse_everything(region)
    pixels = picture.pixels.copy()
    around = context if edit.mode == "erase" or edit.fill.kind == "blur" else 0.0
    for piece in _pieces(region):
        frame = frame_around(piece, around, 1)
        image, hole, others = frame.cut(pixels), frame.cut(piece), frame.cut(region)
        if edit.mode == "erase":
            new = fills.closed(image, others)
        elif edit.fill.kind == "blur":
            new = fills.blurred(image, max(1.0, edit.fill.blur * frame.side))
        else:
            new = frame.cut(_filling(picture.pixels, region, edit.fill, background))
        frame.put(pixels, blend(image, new, feathered(hole, edit.feather)))
    return Picture(pixels, picture.alpha, picture.icc, picture.exif)


def _filling(pixels: DeepPixels, kept: Mask, fill: FillConfig, background: Pixels | None) -> DeepPixels:
    """Return the filling behind the kept pixels, in the size of the image."""
    above, below = (_rgb(colour) for colour in (fill.colour, fill.colour_below))
    if fill.kind == "colour":
        return fills.plain(pixels.shape, above, pixels.dtype)
    if fill.kind == "gradient":
        return fills.gradient(pixels.shape, above, below, pixels.dtype)
    if fill.kind == "blur":
        behind = None if kept.all() else ~kept
        return fills.blurred(pixels, max(1.0, fill.blur * max(pixels.shape[:2])), behind)
    assert background is not None
    fitted = fills.covering(background, *pixels.shape[:2])
    return fitted if pixels.dtype == np.uint8 else fitted.astype(np.uint16) * 257


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return red, green, blue


def _pieces(region: Mask) -> Iterator[Mask]:
    """Yield the connected pieces of a region, each (H, W) bool."""
    count, labels = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
    for number in range(1, count):
        yield labels == number
