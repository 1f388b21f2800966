"""Place image files in exports, with names and formats that the readers of these exports support."""

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
#: Pillow's name of a format → the suffix that every reader accepts.
USUAL = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": PNG, "TIFF": ".tif", "BMP": ".bmp"}


@dataclass(frozen=True, slots=True)
class Reader:
    """The image files that the reader of an export supports.

    Attributes:
        suffixes: accepted suffixes in lower case.
        formats: accepted formats by Pillow's names. None: any.
    """

    suffixes: frozenset[str]
    formats: frozenset[str] | None = None

    def choice(self, source: Path, own: str) -> tuple[str, bool]:
        """Return a suffix that the reader accepts for an image file, and whether the file must be converted to PNG.

        Args:
            own: the suffix of its name, which is kept if possible.

        Raises:
            OvsegError: the file is not an image any more.
        """
        kind = _format(source)
        if own.lower() in self.suffixes and (self.formats is None or kind in self.formats):
            return own, False
        return (USUAL[kind], False) if kind in USUAL else (PNG, True)


def place_image(source: Path, target: Path, how: Literal["link", "copy"], convert: bool, beside: Path) -> None:
    """Replace `target` by a symbolic link to an image file, a copy of it, or a PNG of it.

    Args:
        convert: write a PNG with the same pixels. `how` is ignored.
        beside: folder on the same file system for unfinished files.

    Raises:
        OvsegError: the file is not an image any more.
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
    """Return the path of an image's file.

    Raises:
        UsageError: the image is behind a URL.
        OvsegError: the file is missing, or has changed since the stages read it.
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
    """Return Pillow's name of the format of an image file. Only the header is read."""
    try:
        with open_header(source) as image:
            return image.format or ""
    except Exception as error:  # decoders raise many classes
        raise OvsegError(f"{source} cannot be read any more ({error}); {_without_images()}.") from None


def _as_png(source: Path) -> bytes:
    """Encode the image, or the first frame of an animation, as an upright PNG with the same pixels."""
    try:
        limits = Limits(sys.maxsize, source.stat().st_size)  # the run checked its own limits
        with open_image(str(source), limits) as image, decoding(source):
            if image.mode.startswith("I") and orientation_of(image) == 1:  # `read_picture` reduces these 16 bits to 8
                picture = Picture(np.asarray(image).astype(np.uint16))
            else:
                picture = read_picture(image, source)
            return encode_picture(picture, Encoding("png"))
    except RowError as error:
        raise OvsegError(f"{error.message}; {_without_images()}.") from None


def _without_images() -> str:
    option = spelled("--images none", 'Options(images="none")')
    return f"with {option} the export holds no images"
