"""Write a sheet that compares images, their ground truth, and the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from ovseg_batch.io.atomic import atomic_path
from ovseg_batch.methods.colours import palette
from ovseg_batch.types.arrays import AnyArray, Integers, Pixels

HEIGHT = 224  # pixels of a row of pictures
STRENGTH = 0.75  # opacity of class colours over the image
MARGIN = 8
MARK = ("Software", "ovseg_batch eval")  # text of the PNG


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the sheet.

    Attributes:
        image: (H, W, 3) uint8.
        truth, found: (H, W) class maps; negative for none.
        caption: text of the row.
    """

    image: Pixels
    truth: Integers
    found: Integers
    caption: str


def write_sheet(path: Path, cases: Sequence[Case]) -> None:
    """Write a PNG with one case per row: image, truth, result."""
    rows = [_row(case) for case in cases]
    width = max((row.shape[1] for row in rows), default=3 * HEIGHT)
    sheet = np.full((sum(row.shape[0] + MARGIN for row in rows) + MARGIN, width, 3), 255, np.uint8)
    top = MARGIN
    for row in rows:
        sheet[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0] + MARGIN
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        mark = PngImagePlugin.PngInfo()
        mark.add_text(*MARK)
        Image.fromarray(sheet).save(file, "PNG", pnginfo=mark)


def is_sheet(file: Path) -> bool:
    """Return whether a file is a sheet."""
    try:
        with Image.open(file) as image:
            return image.info.get(MARK[0]) == MARK[1]
    except OSError:
        return False


def overlay(image: Pixels, classes: Integers) -> AnyArray:
    """Draw the classes in colours over the faded image, with dark edges. Pixels without a class are grey.

    Args:
        image: (H, W, 3) uint8 RGB.
        classes: (H, W) integer, negative for none.

    Returns:
        (H, W, 3) uint8.
    """
    known = classes >= 0
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed = (1 - STRENGTH) * image + STRENGTH * palette(max(int(classes.max()) + 1, 1))[np.where(known, classes, 0)]
    mixed = np.where(known[..., None], mixed, grey)
    edges = cv2.morphologyEx(classes.astype(np.int16), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    mixed[edges] *= 0.35
    return mixed.astype(np.uint8)


def _row(case: Case) -> Pixels:
    shape = (max(1, round(case.image.shape[1] * HEIGHT / case.image.shape[0])), HEIGHT)
    pictures = [case.image, overlay(case.image, case.truth), overlay(case.image, case.found)]
    small = [cv2.resize(picture, shape, interpolation=cv2.INTER_AREA) for picture in pictures]
    gap = np.full((HEIGHT, MARGIN, 3), 255, np.uint8)
    row = np.concatenate([part for picture in small for part in (gap, picture)], axis=1)
    labelled = Image.new("RGB", (row.shape[1], HEIGHT + 18), "white")
    ImageDraw.Draw(labelled).text((MARGIN, 3), case.caption, fill="black")
    labelled.paste(Image.fromarray(row), (0, 18))
    return np.asarray(labelled)
