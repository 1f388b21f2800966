"""Thumbnails of the gallery: the image, its masks as a transparent layer, and the edited image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io import rle
from ovseg_batch.io.atomic import atomic_path
from ovseg_batch.io.images import read_row
from ovseg_batch.io.limits import Limits
from ovseg_batch.methods.colours import palette
from ovseg_batch.methods.small_masks import small_mask
from ovseg_batch.types import Annotation, FinishedImage, ImageRow
from ovseg_batch.types.arrays import Pixels

KINDS = ("images", "masks", "edited")  # kinds of thumbnails, with a folder each
DATA = "data"  # folder of the gallery's data, which every report rewrites
SIDE = 360  # longer side in pixels
QUALITY = 78
#: codes of failed images that are not opened again: they are missing, or opening them fails
CLOSED = {FailureCode.MISSING, FailureCode.EMPTY, FailureCode.TOO_LARGE, FailureCode.OUT_OF_MEMORY, FailureCode.CRASHED}


@dataclass(frozen=True, slots=True)
class Album:
    """The thumbnails, stored as `<kind>/<thousand>/<row>.webp`."""

    root: Path

    def path(self, kind: str, row: int) -> Path:
        return self.root / kind / f"{row // 1000:05d}" / f"{row:08d}.webp"

    def add_image(self, row: ImageRow, limits: Limits) -> bool:
        """Write the thumbnail of an image. Return whether the image can be opened and is unchanged since the run."""
        target = self.path("images", row.row)
        if not target.exists():
            try:
                self._write(target, _small(read_row(row, limits)))
            except RowError:
                return False
        return True

    def add_layer(self, image: FinishedImage[Annotation], labels: Sequence[str]) -> None:
        """Write the masks of an image in their labels' colours with darker edges."""
        target = self.path("masks", image.row.row)
        if target.exists():
            return
        height, width = image.size
        scale = min(1.0, SIDE / max(height, width))
        shape = max(1, round(height * scale)), max(1, round(width * scale))
        owner = np.zeros(shape, np.int32)
        colours = np.zeros((len(image.annotations) + 1, 3), np.uint8)
        chosen = palette(len(labels))
        for number, one in enumerate(image.annotations, start=1):
            small_mask(rle.column_runs(one.rle, height, width), shape).paint(owner, number)
            colours[number] = chosen[labels.index(one.category)]
        layer = np.zeros((*shape, 4), np.uint8)
        layer[..., :3], layer[..., 3] = colours[owner], np.where(owner > 0, 255, 0)
        edges = cv2.morphologyEx(owner.astype(np.uint16), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
        layer[edges & (owner > 0), :3] //= 2
        self._write(target, layer)

    def add_edited(self, row: int, path: Path) -> bool:
        """Write the thumbnail of an edited image with its transparency. Return whether the file can be opened."""
        target = self.path("edited", row)
        if not target.exists():
            try:
                with Image.open(path) as picture:
                    picture.thumbnail((SIDE, SIDE))
                    self._save(target, picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
            except OSError:
                return False
        return True

    def _write(self, path: Path, pixels: Pixels) -> None:
        self._save(path, Image.fromarray(pixels))

    def _save(self, path: Path, picture: Image.Image) -> None:
        with atomic_path(path, self.root / DATA) as temporary, temporary.open("wb") as file:
            picture.save(file, "WEBP", quality=QUALITY, method=2)


def _small(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return image
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, shape, interpolation=cv2.INTER_AREA), np.uint8)
