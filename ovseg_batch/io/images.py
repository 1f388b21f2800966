"""Decode image files to upright (H, W, 3) uint8 RGB, or raise a `RowError` with the reason."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ovseg_batch.errors import CHANGED, FailureCode, RowError, is_out_of_memory
from ovseg_batch.io import gif, heif, tiff
from ovseg_batch.io.hashing import content_hash
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.remote import Remote, is_remote, shown
from ovseg_batch.types import ImageRow
from ovseg_batch.types.arrays import AnyArray, Pixels, Scalar

ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap the sides
TURNS: dict[int, Callable[[AnyArray], AnyArray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
FIRST_BYTES = 16 << 20  # bytes read first from a URL; larger files are fetched again once memory is reserved
# attribute of an opened image with 16 bits a channel: the file, or its part that decides the pixels
CONTENT = "deep_content"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: How the files of common formats begin, by the name of the format.
STARTS = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n....IHDR)|(?P<JPEG>\xff\xd8\xff.)|(?P<GIF>GIF8[79]a)|(?P<WebP>RIFF....WEBP)", re.DOTALL
)
# formats that Pillow passes to another program (Ghostscript): an image must not start one
EXTERNAL_FORMATS = frozenset({"EPS"})
LAST_CHUNK = b"\0\0\0\0IEND\xaeB`\x82"  # of a PNG
PIXEL_CHUNKS = frozenset((b"IHDR", b"tRNS", b"IDAT", b"IEND"))  # of a PNG without a palette
STRIP = 1 << 18  # pixels that are copied at a time
LONGEST = 1 << 16  # largest ratio of the sides; every JPEG is below it

# Pillow warns at one size and raises at twice that size; `run.max_pixels` is a single limit instead.
Image.MAX_IMAGE_PIXELS = None
# One text of a PNG may have the size that Pillow allows for all texts together: 64 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# Pillow's warnings name no file and break lines of JSON logs. Real failures raise an exception.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_image(path: str | Path, limits: Limits) -> Pixels:
    """Decode one image file.

    The first frame of an animation and the first page that is not a thumbnail are read. EXIF rotation is applied,
    transparency is blended with white, and 16 bits a channel are reduced to 8.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        RowError: `MISSING`, `UNREADABLE`, `EMPTY`, `NOT_AN_IMAGE`, `TRUNCATED`, `TOO_LARGE` or `BAD_IMAGE`.
    """
    with open_image(str(path), limits) as image:
        return decode(image, path)


def read_row(row: ImageRow, limits: Limits) -> Pixels:
    """Decode the image of a row as `read_image` does, after checking that its file is unchanged.

    Raises:
        RowError: as `read_image`; `CHANGED` where earlier stages read another content.
    """
    content = read_content(row.path, limits)
    identified(row, content)
    with open_content(content, shown(row.path), limits) as image:
        return decode(image, shown(row.path))


Room = Callable[[int], None]  # waits until the given number of bytes may be held


def read_content(path: str, limits: Limits, room: Room = lambda _: None) -> bytes:
    """Return all bytes of a file. `room` is called with their number before they are read.

    Raises:
        RowError: `MISSING`, `UNREADABLE`, `EMPTY` or `TOO_LARGE`.
    """
    most = limits.max_file_bytes
    if is_remote(path):
        if limits.remote is None:
            raise RowError(FailureCode.UNREADABLE, f"{shown(path)} is a URL, and run.allow_remote is off")
        content = _download(path, most, limits.remote, room)
        size = len(content)
    else:
        try:
            content, size = _read_file(path, most, room)
        except FileNotFoundError:
            raise RowError(FailureCode.MISSING, f"{path} is not there") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise RowError(FailureCode.UNREADABLE, f"{path}: {reason}") from None
    if size > most:
        raise RowError(FailureCode.TOO_LARGE, f"{shown(path)} has more than run.max_file_bytes={most} bytes")
    if size == 0:
        raise RowError(FailureCode.EMPTY, f"{shown(path)} has no bytes")
    return content


def identified(row: ImageRow, content: bytes) -> ImageRow:
    """Return the row with the hash of its file's content.

    Raises:
        RowError: `CHANGED` where an earlier stage read another content.
    """
    found = content_hash(content)
    if row.content not in (None, found):
        raise RowError(FailureCode.CHANGED, f"{shown(row.path)} {CHANGED}")
    return replace(row, content=found)


def _download(url: str, most: int, remote: Remote, room: Room) -> bytes:
    """Return the content of a URL: at most `most` + 1 bytes.

    The size is not known in advance. A file that exceeds the reserved memory is fetched again once memory is free,
    because a connection that waits would time out.
    """
    bound = min(FIRST_BYTES, most)
    while True:
        room(bound)
        content = remote.read(url, bound)
        if len(content) <= bound or bound == most:
            return content
        del content
        bound = min(4 * bound, most)


def _read_file(path: str, most: int, room: Room) -> tuple[bytes, int]:
    """Return the content of a regular file, empty where it has more than `most` bytes, and its size in bytes.

    Raises:
        RowError: `UNREADABLE` for a pipe, a socket or a device, which may be endless or block.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RowError(FailureCode.UNREADABLE, f"{path} is no regular file")
        if status.st_size > most:
            return b"", status.st_size
        room(status.st_size)
        content = file.read(most + 1)  # the files of /proc report no size, and some are endless
        return content, len(content)


def open_image(path: str, limits: Limits, room: Room = lambda _: None) -> Image.Image:
    """Read a file and its header without decoding pixels.

    Args:
        room: waits until a number of bytes may be held for the file.

    Raises:
        RowError: as `read_image`.
    """
    return open_content(read_content(path, limits, room), shown(path), limits)


def open_content(content: bytes, path: str, limits: Limits) -> Image.Image:
    """Read the header of a file's content without decoding pixels. Raises RowError."""
    if (canvas := gif.canvas_size(content)) is not None:
        _check_size(*canvas, path, limits)
    try:
        image = open_header(io.BytesIO(content))
        tiff.to_main_page(image, path)
    except RowError:
        raise
    except UnidentifiedImageError:
        raise _unknown(path, content) from None
    except Exception as error:
        raise _bad(path, error) from None
    _check_size(*image.size, path, limits)
    if _is_deep_png(image):
        with decoding(path):
            content = _pixel_chunks(content)
    if tiff.is_deep(image) or _is_deep_png(image):
        setattr(image, CONTENT, content)
    return image


def _check_size(width: int, height: int, path: str, limits: Limits) -> None:
    """Raise RowError where an image has no pixels, too many, or sides of very different length."""
    if width * height > limits.max_pixels:
        raise RowError(
            FailureCode.TOO_LARGE, f"{path} is {width} × {height} pixels, more than run.max_pixels={limits.max_pixels}"
        )
    if width * height == 0:
        raise RowError(FailureCode.BAD_IMAGE, f"{path} is {width} × {height} pixels")
    if max(width, height) > LONGEST * min(width, height):
        raise RowError(
            FailureCode.TOO_LARGE,
            f"{path} is {width} × {height} pixels: one side is more than {LONGEST} times as long as the other",
        )


def open_header(file: Path | io.BytesIO) -> Image.Image:
    """Open an image in any supported format. Errors of Pillow are raised unchanged."""
    heif.register()
    tiff.register()
    Image.preinit()  # loads the plugins of common formats; `init` would load forty more
    with contextlib.suppress(UnidentifiedImageError):
        return Image.open(file, formats=_formats())
    Image.init()
    return Image.open(file, formats=_formats())


def _formats() -> list[str]:
    """Return the formats that Pillow has a plugin for and opens without another program."""
    return [name for name in Image.ID if name not in EXTERNAL_FORMATS]


def _is_deep_png(image: Image.Image) -> bool:
    opened: Any = image
    return image.format == "PNG" and bool(opened.tile) and "16" in str(opened.tile[0][3])


def _unknown(path: str, content: bytes) -> RowError:
    if content[:4] in TIFF_STARTS:
        which = "float, signed, 32 bits a sample or an unusual number of samples"
        text = (
            f"{path} is a TIFF whose kind of pixels cannot be read ({which}). Save it as RGB or grey of 8 or 16 bits."
        )
        return RowError(FailureCode.BAD_IMAGE, text)
    if start := STARTS.match(content):
        text = f"{path} begins like a {start.lastgroup} file, but is damaged, so that it cannot be opened."
        return RowError(FailureCode.BAD_IMAGE, text)
    return RowError(FailureCode.NOT_AN_IMAGE, f"{path} is in no image format that can be read{heif.hint(content)}")


def decode(image: Image.Image, path: str | Path) -> Pixels:
    """Decode an opened image to upright (H, W, 3) uint8 RGB. Raises RowError."""
    with decoding(path):
        # Pillow reduces the transparent colour to 8 bits
        if is_deep(image) and (image.format == "TIFF" or "transparency" in image.info):
            pixels, alpha = read_deep(image, path)
            eight = [(part >> 8).astype(np.uint8) for part in (pixels, alpha) if part is not None]
            return eight[0] if alpha is None else _on_white(Image.fromarray(np.dstack(eight)))
        tiff.check_samples(image, path)
        image.load()
        turn = TURNS.get(orientation_of(image))
        decoded = _pixels(_to_rgb(image, path))
        return decoded if turn is None else np.ascontiguousarray(turn(decoded))


def is_deep(image: Image.Image) -> bool:
    """Return whether the file of an opened image has 16 bits a channel. Pillow reduces colours to 8 bits."""
    return hasattr(image, CONTENT)


def read_deep(image: Image.Image, path: str | Path) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | None]:
    """Decode an opened image for which `is_deep` holds.

    Returns:
        pixels (H, W, 3) uint16, upright, and alpha (H, W) uint16, None where the file has none.

    Raises:
        RowError: the samples have a sign, or OpenCV cannot read a PNG.
    """
    tiff.check_samples(image, path)
    content = getattr(image, CONTENT)
    orientation = orientation_of(image)
    pixels, alpha = tiff.read_deep(image, content) if image.format == "TIFF" else _deep_png(image, content)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return upright(pixels, orientation), None if alpha is None else upright(alpha, orientation)


def _deep_png(image: Image.Image, content: bytes) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | None]:
    image.load()  # raises where the file is damaged; OpenCV would return a part of the pixels
    if image.mode == "I;16":  # the only mode in which Pillow keeps 16 bits
        grey, key = np.asarray(image), image.info.get("transparency")
        return grey, None if key is None else np.where(grey == key, np.uint16(0), np.uint16(65535))
    import cv2  # imported here: it needs 40 MB, and many exports do not decode images

    whole = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if whole is None or whole.dtype != np.uint16 or whole.ndim != 3:
        raise ValueError("its 16 bits a channel cannot be read")
    deep = np.asarray(whole, np.uint16)
    return deep[..., 2::-1], deep[..., 3] if deep.shape[2] == 4 else None


def _pixel_chunks(content: bytes) -> bytes:
    """Return a PNG that holds only the chunks that decide its pixels. OpenCV rejects files for some other chunks.

    The last chunk is added where it is missing, because it holds no pixels.

    Raises:
        ValueError: one of these chunks is truncated or has a wrong checksum. Pillow reads such pixels, OpenCV does not.
    """
    parts, place = [content[:8]], 8
    while place < len(content):
        end = place + int.from_bytes(content[place : place + 4]) + 12
        kind = content[place + 4 : place + 8]
        if kind in PIXEL_CHUNKS:
            if end > len(content):
                raise ValueError("the file is truncated")
            if zlib.crc32(memoryview(content)[place + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
                raise ValueError("the checksum of its pixels is wrong, so the file is damaged")
            if kind == LAST_CHUNK[4:8]:
                break
            parts.append(content[place:end])
        place = end
    return b"".join((*parts, LAST_CHUNK))


@contextlib.contextmanager
def decoding(path: str | Path) -> Iterator[None]:
    """Convert every exception of a decoder into a RowError. Decoders raise many classes, and none may end the run."""
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        raise _bad(path, error) from None


def _bad(path: str | Path, error: Exception) -> RowError:
    text = f"{path}: {type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return RowError(FailureCode.OUT_OF_MEMORY, text)
    torn = any(word in str(error).lower() for word in ("truncat", "broken png", "not enough", "unexpected end"))
    return RowError(FailureCode.TRUNCATED if torn else FailureCode.BAD_IMAGE, text)


def upright(pixels: NDArray[Scalar], orientation: int) -> NDArray[Scalar]:
    """Return a copy of decoded pixels (H, W, …), turned by the orientation of EXIF."""
    turn = TURNS.get(orientation)
    return np.array(pixels if turn is None else turn(pixels), order="C")  # Pillow's buffer is read-only


def upright_size(image: Image.Image, path: str | Path) -> tuple[int, int]:
    """Return (H, W) of an opened image after the orientation of EXIF. Only a PNG is decoded.

    Raises:
        RowError: a PNG that cannot be decoded.
    """
    with decoding(path):
        # Pillow has already rotated the size of a TIFF
        turned = image.format != "TIFF" and orientation_of(image) in QUARTER_TURNS
    return (image.width, image.height) if turned else (image.height, image.width)


def orientation_of(image: Image.Image) -> int:
    """Return the orientation in EXIF, 1 to 8; 1 where there is none or EXIF cannot be read. A PNG is decoded.

    Raises:
        Exception: what Pillow raises where a PNG cannot be decoded.
    """
    # Pillow decodes it to find EXIF after the pixels, and does not decode again after a failure
    if image.format == "PNG":
        image.load()
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not affect the pixels
        return 1
    return found if found in range(1, 9) else 1


def reduce(image: Image.Image, longest: int) -> None:
    """Set an opened JPEG to decode at 1/2, 1/4 or 1/8 size, with a longer side of at least `longest` pixels."""
    share = longest / max(image.size)
    if image.format == "JPEG" and share < 1:
        image.draft(None, (max(1, round(image.width * share)), max(1, round(image.height * share))))


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """Convert to RGB. Integers of more than 8 bits are scaled by their depth, not by their values."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales PPM to 16 bits
        return Image.fromarray((np.asarray(image) >> (tiff.bits_of(image) - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise RowError(FailureCode.BAD_IMAGE, f"{path} {tiff.UNSUPPORTED_SAMPLES}")
    if image.has_transparency_data:
        return Image.fromarray(_on_white(image.convert("RGBA")))
    return image if image.mode == "RGB" else image.convert("RGB")


def _pixels(image: Image.Image) -> Pixels:
    """Return the pixels (H, W, 3) uint8 of an RGB image, copied in strips that stay in the processor's cache."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image if rows >= image.height else image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(strip)
    return pixels


def _on_white(image: Image.Image) -> Pixels:
    """Blend an RGBA image with white. Return (H, W, 3) uint8."""
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
