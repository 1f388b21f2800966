"""Thumbnails of the gallery: the image, its masks as a transparent layer, and the edited image.

The name of a picture holds a digest of what it shows. A picture that has changed has another name, so neither a later
report nor a browser's cache can show the old one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

KINDS = ("images", "masks", "edited", "large", "large-edited")  # kinds of pictures, with a folder each
DATA = "data"  # folder of the gallery's data, which every report rewrites
SIDE, LARGE = 360, 2048  # longer side of thumbnails and of renditions in pixels
QUALITY = 78
#: codes of failed images that are not opened again: they are missing, or opening them fails
CLOSED = {FailureCode.MISSING, FailureCode.EMPTY, FailureCode.TOO_LARGE, FailureCode.OUT_OF_MEMORY, FailureCode.CRASHED}


@dataclass(frozen=True, slots=True)
class Album:
    """The thumbnails, stored as `<kind>/<thousand>/<row>-<digest>.webp`.

    Every method that adds one returns the digest in its name, or an empty string where there is no picture.
    """

    root: Path

    def path(self, kind: str, row: int, token: str) -> Path:
        return self.root / kind / f"{row // 1000:05d}" / f"{row:08d}-{token}.webp"

    def add_image(self, row: ImageRow, limits: Limits, large: bool) -> tuple[str, bool]:
        """Write the thumbnail of an image, and a rendition of it with `large`.

        Nothing is written if the image cannot be opened or has changed since the run.

        Returns:
            the digest, and whether there is a rendition.
        """
        token = image_token(row)
        thumbnail, rendition = (self.path(kind, row.row, token) for kind in ("images", "large"))
        if not thumbnail.exists() or (large and not rendition.exists()):
            try:
                pixels = read_row(row, limits)
            except RowError:
                return token if thumbnail.exists() else "", False
            self._write(thumbnail, _small(pixels, SIDE))
            if large:
                self._write(rendition, _small(pixels, LARGE))
        return token, large

    def add_layer(self, image: FinishedImage[Annotation], labels: Sequence[str]) -> str:
        """Write the masks of an image in their labels' colours with darker edges."""
        token = masks_token(image, labels)
        target = self.path("masks", image.row.row, token)
        if target.exists():
            return token
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
        return token

    def add_edited(self, row: int, path: Path, digest: str, large: bool) -> tuple[str, bool]:
        """Write the thumbnail of an edited image with its transparency, and a rendition with `large`.

        Nothing is written if the file cannot be opened.

        Args:
            digest: of the file's content.

        Returns:
            the digest in the names, and whether there is a rendition.
        """
        token = token_of(digest)
        sides = {"edited": SIDE, **({"large-edited": LARGE} if large else {})}
        targets = {side: self.path(kind, row, token) for kind, side in sides.items()}
        for side, target in targets.items():
            if not target.exists():
                try:
                    with Image.open(path) as picture:
                        picture.thumbnail((side, side))
                        self._save(target, picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
                except OSError:
                    return "", False
        return token, large

    def paths(self, entry: Sequence[Any], details: Mapping[str, Any]) -> Iterator[Path]:
        """Yield the pictures of an image of the gallery, as `entries` returns it."""
        row, _, _, photo, layer, edited = entry[:6]
        tokens = {"images": photo, "masks": layer, "edited": edited}
        tokens["large"] = photo if details["large"] else ""
        tokens["large-edited"] = edited if "edited" in details and details["edited"][1] else ""
        for kind, token in tokens.items():
            if token:
                yield self.path(kind, row, token)

    def remove_others(self, kept: Iterable[Path]) -> None:
        """Remove the pictures that no image of the gallery has."""
        known = set(kept)
        for kind in KINDS:
            for path in (self.root / kind).glob("*/*.webp"):
                if path not in known:
                    path.unlink()

    def _write(self, path: Path, pixels: Pixels) -> None:
        self._save(path, Image.fromarray(pixels))

    def _save(self, path: Path, picture: Image.Image) -> None:
        with atomic_path(path, self.root / DATA) as temporary, temporary.open("wb") as file:
            picture.save(file, "WEBP", quality=QUALITY, method=2)


def token_of(*content: object) -> str:
    """Return eight hexadecimal digits that change with the content."""
    return hashlib.blake2b(repr(content).encode(), digest_size=4).hexdigest()


def image_token(row: ImageRow) -> str:
    """Return a digest of the content of an image file, or of its name and time where no stage has read it."""
    return token_of(row.content or (row.path, row.bytes, row.mtime_ns))


def masks_token(image: FinishedImage[Annotation], labels: Sequence[str]) -> str:
    """Return a digest of the masks of an image, of their labels and of the labels' colours."""
    return token_of(image.size, tuple(labels), [(one.category, one.score, one.rle) for one in image.annotations])


def _small(image: Pixels, side: int) -> Pixels:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, shape, interpolation=cv2.INTER_AREA), np.uint8)
