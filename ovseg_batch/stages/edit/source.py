"""The input of an edit: the decoded image, the masks that it uses, and the encoding of its file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ovseg_batch.io import rle
from ovseg_batch.io.pictures import (
    HOLDS_16_BITS,
    HOLDS_ALPHA,
    Encoding,
    Format,
    Picture,
    output_name,
    read_picture,
    unique_name,
)
from ovseg_batch.io.remote import shown
from ovseg_batch.settings import EditConfig
from ovseg_batch.settings.edit_modes import EDIT_MODES
from ovseg_batch.types import Annotation, ImageRow, painting_order

METADATA = {"keep": frozenset({"icc", "exif"}), "colour": frozenset({"icc"}), "none": frozenset[str]()}
LOSSLESS: dict[str, Format] = {"PNG": "png", "TIFF": "tiff", "WEBP": "webp"}  # formats that `auto` stays with


@dataclass(frozen=True, slots=True)
class EditSource:
    """The input of an edit.

    Attributes:
        masks: (label, RLE counts) in the picture's frame.
        name: of the edited file.
    """

    picture: Picture
    masks: list[tuple[str, bytes]]
    encoding: Encoding
    name: str


def read_source(
    row: ImageRow, image: Image.Image, annotations: Sequence[Annotation], edit: EditConfig, labels: Collection[str]
) -> EditSource:
    """Decode an image and choose its masks.

    Args:
        annotations: the image's masks.
        labels: those whose masks count.

    Raises:
        RowError: the image cannot be decoded.
    """
    name = shown(row.path)
    encoding = _encoding(edit, image.format or "")
    picture = fitting(read_picture(image, name), encoding.format)
    chosen = [one for one in annotations if one.category in labels and one.score >= edit.min_score]
    if EDIT_MODES[edit.mode].generated:
        chosen = disjoint(chosen, *picture.pixels.shape[:2])
    masks = [(one.category, one.rle) for one in chosen]
    return EditSource(picture, masks, encoding, output_name(unique_name(row), encoding.format))


def disjoint(annotations: list[Annotation], height: int, width: int) -> list[Annotation]:
    """Return masks without common pixels: the mask of the highest score keeps a pixel. A generator changes it once."""
    if sum(one.area for one in annotations) == rle.area_of_union([one.rle for one in annotations], height, width):
        return annotations
    owner = np.zeros((height, width), np.int32)
    for number in painting_order(annotations):
        rle.decode_placed(annotations[number].rle, height, width).paint(owner, number + 1)
    counts = rle.encode_regions(owner)
    return [replace(one, rle=counts[k]) for k, one in enumerate(annotations, start=1) if k in counts]


def _encoding(edit: EditConfig, own: str) -> Encoding:
    """How an image is written whose file is in Pillow's format `own`."""
    fitting: Format = "png" if edit.mode == "mask" else LOSSLESS.get(own, "png")
    chosen = fitting if edit.format == "auto" else edit.format
    return Encoding(chosen, edit.quality, edit.compression, METADATA[edit.metadata])


def fitting(picture: Picture, format: Format) -> Picture:
    """Return the picture without the depth and the transparency that the format cannot hold."""
    pixels, alpha = picture.pixels, picture.alpha
    if pixels.dtype == np.uint16 and format not in HOLDS_16_BITS:
        pixels, alpha = (pixels >> 8).astype(np.uint8), None if alpha is None else (alpha >> 8).astype(np.uint8)
    if alpha is not None and format not in HOLDS_ALPHA:
        top = np.iinfo(pixels.dtype).max
        share = (alpha.astype(np.float32) / top)[..., None]
        pixels, alpha = np.rint(pixels * share + top * (1 - share)).astype(pixels.dtype), None
    return Picture(pixels, alpha, picture.icc, picture.exif)
