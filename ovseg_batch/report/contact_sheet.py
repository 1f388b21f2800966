"""Write one PNG with small pictures of images, their masks, and the labels' names, for terminals without a browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ovseg_batch.errors import RowError
from ovseg_batch.io import rle
from ovseg_batch.io.atomic import atomic_path
from ovseg_batch.io.images import read_row
from ovseg_batch.io.limits import Limits
from ovseg_batch.methods.colours import palette
from ovseg_batch.methods.small_masks import small_mask
from ovseg_batch.types import Annotation, FinishedImage
from ovseg_batch.types.arrays import Pixels
from ovseg_batch.workdir.findings import printable
from ovseg_batch.workdir.results import Results, failed_rows

SIDE = 300  # longer side of a picture in pixels
MARGIN, LINE = 8, 18  # pixels around a picture, and of a line of text
COLUMNS = 4
OPACITY = 0.5
NAMED = 0.01  # least share of the image of a mask that carries its label's name
MARK = ("Software", "ovseg_batch try")  # text of the PNG


def is_contact_sheet(file: Path) -> bool:
    """Return whether this module wrote a file."""
    try:
        with Image.open(file) as image:
            return bool(image.info.get(MARK[0]) == MARK[1])
    except OSError:
        return False


def write_contact_sheet(results: Results, path: Path, most: int, limits: Limits) -> int:
    """Write the sheet of the first images of a run.

    Args:
        most: images on the sheet.
        limits: of the images that are opened again.

    Returns:
        The number of images on it.
    """
    cells = [cell for _, cell in zip(range(most), _cells(results, limits), strict=False)]
    side = SIDE + 2 * MARGIN
    height = side + LINE
    columns = min(COLUMNS, max(len(cells), 1))
    sheet = Image.new("RGB", (columns * side, max(1, -(-len(cells) // columns)) * height), "white")
    for number, (picture, caption) in enumerate(cells):
        row, column = divmod(number, columns)
        left, top = column * side + MARGIN, row * height + MARGIN
        ImageDraw.Draw(sheet).text((left, top), caption, fill="black", font=_font())
        sheet.paste(picture, (left, top + LINE))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        mark = PngImagePlugin.PngInfo()
        mark.add_text(*MARK)
        sheet.save(file, "PNG", pnginfo=mark)
    return len(cells)


def _cells(results: Results, limits: Limits) -> Iterator[tuple[Image.Image, str]]:
    """Yield the picture and the caption of every image, failed ones included."""
    for shard in range(results.manifest.shards):
        finished = {image.row.row: image for image in results.shard(shard)}
        failed = {row: code for row, _, _, code, _ in failed_rows(results.manifest, results.stores, [shard])}
        for row in results.manifest.read_shard(shard):
            name = _cut(printable(row.file_name))
            if row.row in failed or row.row not in finished:
                yield _blank(failed.get(row.row, "not computed")), name
                continue
            image = finished[row.row]
            try:
                yield _picture(read_row(image.row, limits), image, results.labels), name
            except RowError as error:
                yield _blank(str(error.code)), name


def _picture(pixels: Pixels, image: FinishedImage[Annotation], labels: Sequence[str]) -> Image.Image:
    """Return a small picture with coloured masks, their dark edges, and the names of the larger ones."""
    height, width = image.size
    scale = SIDE / max(height, width)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    small = np.asarray(cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA), np.float32)
    owner = np.zeros(shape, np.int32)
    colours = palette(len(labels))
    for number, one in enumerate(image.annotations, start=1):
        small_mask(rle.column_runs(one.rle, height, width), shape).paint(owner, number)
    if image.annotations:
        of_owner = np.array([colours[labels.index(one.category)] for one in image.annotations], np.float32)
        inside = owner > 0
        small[inside] = (1 - OPACITY) * small[inside] + OPACITY * of_owner[owner[inside] - 1]
        edges = cv2.morphologyEx(owner.astype(np.uint16), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
        small[edges] *= 0.3
    picture = Image.fromarray(small.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for number, one in enumerate(image.annotations, start=1):
        if one.area >= NAMED * height * width and (owner == number).any():
            x, y = _middle(owner == number)
            draw.text(
                (x, y),
                printable(one.category),
                fill="white",
                font=_font(),
                anchor="mm",
                stroke_width=2,
                stroke_fill="black",
            )
    return picture


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """Return x, y of the pixel that lies deepest in a mask."""
    edged = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(edged, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = divmod(int(depth.argmax()), mask.shape[1])
    return x, y


def _blank(reason: str) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), (235, 235, 235))
    ImageDraw.Draw(picture).text((SIDE / 2, SIDE / 2), f"failed: {reason}", fill="black", font=_font(), anchor="mm")
    return picture


def _cut(name: str) -> str:
    return name if len(name) <= 42 else f"…{name[-41:]}"


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)
