"""Image files in exports that want them beside the labels, as the readers of these exports find and open them."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ovseg_batch.errors import OvsegError, RowError, UsageError
from ovseg_batch.io.atomic import create, temporary_path
from ovseg_batch.io.images import decoding, identified, open_header, open_image, orientation_of
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.pictures import Encoding, Picture, encode_picture, read_picture
from ovseg_batch.io.remote import is_remote, shown
from ovseg_batch.types import ImageRow
from ovseg_batch.wording import spelled

PNG = ".png"
#: Format, as Pillow calls it → the suffix under which every reader takes it.
USUAL = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": PNG, "TIFF": ".tif", "BMP": ".bmp"}


@dataclass(frozen=True, slots=True)
class Reader:
    """What image files the reader of an export opens.

    Attributes:
        suffixes: in lower case.
        formats: as Pillow calls them; None: whatever the file holds.
    """

    suffixes: frozenset[str]
    formats: frozenset[str] | None = None

    def choice(self, source: Path, own: str) -> tuple[str, bool]:
        """Return the suffix under which the reader takes an image file, and whether it must become a PNG for that.

        Args:
            own: the suffix of its name, which is kept where it can be.

        Raises:
            OvsegError: the file is no image any more.
        """
        kind = _format(source)
        if own.lower() in self.suffixes and (self.formats is None or kind in self.formats):
            return own, False
        return (USUAL[kind], False) if kind in USUAL else (PNG, True)


def place_image(source: Path, target: Path, how: Literal["link", "copy"], convert: bool, beside: Path) -> None:
    """Make `target` a symbolic link to an image file, a copy of it, or a PNG of it; what was called so is replaced.

    Args:
        convert: write a PNG with the same pixels, whatever `how` says.
        beside: a folder on the same disk for what is not finished.

    Raises:
        OvsegError: the file is no image any more.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(beside / "image")
    try:
        if convert:
            with create(temporary) as file:
                file.write(_as_png(source))
        elif how == "link":
            temporary.symlink_to(source)
        else:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def local_path(row: ImageRow) -> Path:
    """Where an image's file is.

    Raises:
        UsageError: behind a URL.
        OvsegError: nowhere any more, or another one than the stages have read.
    """
    if is_remote(row.path):
        raise UsageError(f"{shown(row.path)} is not on this machine; {_without_images()}.")
    path = Path(row.path).absolute()
    if not path.is_file():
        raise OvsegError(f"{path} is not there any more; {_without_images()}.")
    status = path.stat()
    if (status.st_size, status.st_mtime_ns) != (row.bytes, row.mtime_ns):
        try:
            identified(row, path.read_bytes())
        except RowError as error:
            raise OvsegError(f"{error.message}; {_without_images()}.") from None
    return path


def _format(source: Path) -> str:
    """What Pillow calls the format of an image file, whose header alone is read."""
    try:
        with open_header(source) as image:
            return image.format or ""
    except Exception as error:  # decoders raise whatever they like
        raise OvsegError(f"{source} cannot be read any more ({error}); {_without_images()}.") from None


def _as_png(source: Path) -> bytes:
    """The image, or the first frame of an animation, as a PNG with the same pixels, upright."""
    try:
        limits = Limits(sys.maxsize, source.stat().st_size)  # the run has opened it within its own
        with open_image(str(source), limits) as image, decoding(source):
            if image.mode.startswith("I") and orientation_of(image) == 1:  # `read_picture` cuts these 16 bits to 8
                picture = Picture(np.asarray(image).astype(np.uint16))
            else:
                picture = read_picture(image, source)
            return encode_picture(picture, Encoding("png"))
    except RowError as error:
        raise OvsegError(f"{error.message}; {_without_images()}.") from None


def _without_images() -> str:
    option = spelled("--images none", 'Options(images="none")')
    return f"with {option} the export holds no images"
