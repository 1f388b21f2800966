"""Decide which image files a browser shows as the run has read them. The others get a rendition."""

from __future__ import annotations

import stat
from pathlib import Path

from PIL import Image

from ovseg_batch.types import ImageRow

ORIENTATION = 0x0112  # EXIF's tag
PIXELS, BYTES = 40_000_000, 40 << 20  # larger files make a browser slow
#: format → modes that browsers show in the same colours
MODES = {
    "JPEG": {"L", "RGB"},
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA"},
    "WEBP": {"RGB", "RGBA"},
    "GIF": {"L", "P", "RGB", "RGBA"},
    "AVIF": {"RGB", "RGBA"},
}


def is_unchanged(row: ImageRow) -> bool:
    """Return whether the image file has the size and the time that the manifest lists."""
    try:
        found = Path(row.path).stat()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False
    known = (row.bytes in (None, found.st_size), row.mtime_ns in (None, found.st_mtime_ns))
    return stat.S_ISREG(found.st_mode) and found.st_size <= BYTES and all(known)


def browsers_show(row: ImageRow) -> bool:
    """Return whether browsers show the file of a row upright and in its colours. Only the header is read."""
    if not is_unchanged(row):
        return False
    try:
        with Image.open(row.path, formats=tuple(MODES)) as image:
            if image.mode not in MODES[str(image.format)] or getattr(image, "is_animated", False):
                return False
            if image.width * image.height > PIXELS:
                return False
            return image.format == "JPEG" or image.getexif().get(ORIENTATION, 1) == 1
    except Exception:  # a damaged header; decoders raise errors of many kinds
        return False
