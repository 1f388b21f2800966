"""Files to pixels: every image as (H, W, 3) uint8 RGB, upright, or a typed reason why not.

`decode_ahead` works in threads (decoders release the GIL) and holds at most so many bytes of decoded images, so that
a folder of panoramas needs no more memory than one of thumbnails.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ovseg_batch import failpoints
from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io import heif
from ovseg_batch.io.remote import Remote, is_remote, shown
from ovseg_batch.types import ImageRow

Array = np.ndarray[Any, Any]

T = TypeVar("T")

ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap the sides
TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
AHEAD = 64  # rows begun before the one in use; the bytes are what really bounds it
FETCHERS = 16  # threads where images come from a network; they wait most of the time
PEAK = 3  # bytes a pixel of a decoded image; Pillow holds about twice that for a moment

# Pillow's own guard warns at one size and raises at twice that; `run.max_pixels` says plainly where the limit is.
Image.MAX_IMAGE_PIXELS = None
# One text of a PNG may be as large as Pillow lets all of them be together, which is 64 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be read: pixels, bytes of a file, and how URLs are fetched, None where they are not."""

    max_pixels: int
    max_file_bytes: int
    remote: Remote | None = None


def read_image(path: str | Path, limits: Limits) -> Array:
    """Decode one image file.

    The first frame of an animation; EXIF rotation applied; transparency laid on white; 16 bits a channel cut to 8.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        RowError: `MISSING`, `UNREADABLE`, `EMPTY`, `NOT_AN_IMAGE`, `TRUNCATED`, `TOO_LARGE` or `BAD_IMAGE`.
    """
    with open_image(str(path), limits) as image:
        return decode(image, path)


def _content(path: str, limits: Limits) -> bytes:
    """All bytes of the file."""
    most = limits.max_file_bytes
    if is_remote(path):
        if limits.remote is None:
            raise RowError(FailureCode.UNREADABLE, f"{shown(path)} is a URL, and run.allow_remote is off")
        content = limits.remote.read(path, most)
        size = len(content)
    else:
        try:
            content, size = _read_file(path, most)
        except FileNotFoundError:
            raise RowError(FailureCode.MISSING, f"{path} is not there") from None
        except OSError as error:
            raise RowError(FailureCode.UNREADABLE, f"{path}: {error.strerror or error}") from None
    if size > most:
        raise RowError(FailureCode.TOO_LARGE, f"{shown(path)} has more than run.max_file_bytes={most} bytes")
    if size == 0:
        raise RowError(FailureCode.EMPTY, f"{shown(path)} has no bytes")
    return content


def _read_file(path: str, most: int) -> tuple[bytes, int]:
    """Return the bytes of a regular file, or none where there are more than `most`; and how many there are.

    Raises:
        RowError: a pipe, a socket or a device, which may have no end or never answer.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RowError(FailureCode.UNREADABLE, f"{path} is no regular file")
        if status.st_size > most:
            return b"", status.st_size
        content = file.read(most + 1)  # the files of /proc have no size and no end
        return content, len(content)


def open_image(path: str, limits: Limits) -> Image.Image:
    """Read the file and its header; no pixel is decoded yet.

    Raises:
        RowError: as `read_image`.
    """
    content, path = _content(path, limits), shown(path)
    try:
        heif.register()
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        message = f"{path} is in no image format that can be read{heif.hint(content)}"
        raise RowError(FailureCode.NOT_AN_IMAGE, message) from None
    except Exception as error:
        raise _bad(path, error) from None
    width, height = image.size
    if width * height > limits.max_pixels:
        raise RowError(
            FailureCode.TOO_LARGE, f"{path} is {width} × {height} pixels, more than run.max_pixels={limits.max_pixels}"
        )
    if width * height == 0:
        raise RowError(FailureCode.BAD_IMAGE, f"{path} is {width} × {height} pixels")
    return image


def decode(image: Image.Image, path: str | Path) -> Array:
    """The pixels of an opened image, (H, W, 3) uint8 RGB, upright. Raises RowError."""
    with decoding(path):
        image.load()
        return upright(np.asarray(_to_rgb(image)), orientation_of(image))


@contextlib.contextmanager
def decoding(path: str | Path) -> Iterator[None]:
    """Whatever a decoder raises in here becomes a RowError: they raise whatever they like, and none may end the run."""
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        raise _bad(path, error) from None


def _bad(path: str | Path, error: Exception) -> RowError:
    text = f"{path}: {type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return RowError(FailureCode.OUT_OF_MEMORY, text)
    torn = any(word in str(error).lower() for word in ("truncat", "broken png", "not enough", "unexpected end"))
    return RowError(FailureCode.TRUNCATED if torn else FailureCode.BAD_IMAGE, text)


def upright(pixels: Array, orientation: int) -> Array:
    """Return a copy of decoded pixels (H, W, …), turned by the orientation of EXIF."""
    turn = TURNS.get(orientation)
    return np.array(pixels if turn is None else turn(pixels), order="C")  # Pillow's own buffer cannot be written to


def upright_size(image: Image.Image, path: str | Path) -> tuple[int, int]:
    """Return (H, W) of an opened image after the orientation of EXIF. Only a PNG is decoded.

    Raises:
        RowError: a PNG that cannot be decoded.
    """
    if image.format == "PNG":  # Pillow decodes it to find EXIF behind the pixels, and decodes no second time
        with decoding(path):
            image.load()
    turned = image.format != "TIFF" and orientation_of(image) in QUARTER_TURNS  # Pillow has turned a TIFF's size
    return (image.width, image.height) if turned else (image.height, image.width)


def orientation_of(image: Image.Image) -> int:
    """Return the orientation in EXIF, 1 to 8; 1 where there is none or EXIF cannot be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1
    return found if found in range(1, 9) else 1


def reduce(image: Image.Image, longest: int) -> None:
    """Have an opened JPEG decoded at 1/2, 1/4 or 1/8, its longer side at least `longest` pixels; others whole."""
    share = longest / max(image.size)
    if image.format == "JPEG" and share < 1:
        image.draft(None, (round(image.width * share), round(image.height * share)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        grey = (wide >> 8 if wide.dtype == np.uint16 or wide.max(initial=0) > 255 else wide).clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise RowError(FailureCode.BAD_IMAGE, "floating-point pixels have no agreed white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


class _Budget:
    """Bytes that decoded images may hold. The row in front always gets what it needs, so nothing can stand still."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[int, int] = {}
        self._front = 0
        self._changed = threading.Condition()
        self._closed = False

    def take(self, index: int, cost: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or index == self._front or sum(self._held.values()) + cost <= self._limit
            )
            self._held[index] = cost

    def give_back(self, index: int) -> None:
        with self._changed:
            self._held.pop(index, None)
            self._front = index + 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def decode_ahead(
    rows: Sequence[ImageRow], threads: int, max_bytes: int, limits: Limits
) -> Iterator[tuple[ImageRow, Array | RowError]]:
    """Decode the rows' images in threads, in order; each comes with its (H, W, 3) uint8 pixels or its `RowError`.

    Args: as `work_ahead`.
    """
    return work_ahead(rows, lambda row, image: decode(image, shown(row.path)), threads, max_bytes, limits)


def work_ahead(
    rows: Sequence[ImageRow],
    work: Callable[[ImageRow, Image.Image], T],
    threads: int,
    max_bytes: int,
    limits: Limits,
    peak: int = PEAK,
) -> Iterator[tuple[ImageRow, T | RowError]]:
    """Do something with the rows' images in threads, and give what comes of it in order.

    Args:
        rows: what to open.
        work: gets the opened image, not decoded yet; may raise RowError.
        threads: how many do it; more are taken where images are behind URLs.
        max_bytes: what is held for images that wait to be used is no more than this; one larger image alone may be.
        limits: what may be read.
        peak: bytes a pixel that `work` leaves.

    Yields:
        each row with what `work` made of it, or with the `RowError` to charge to it.
    """
    budget = _Budget(max_bytes)

    def do(index: int, row: ImageRow) -> T | RowError:
        try:
            failpoints.reach(f"decode-{row.row}")
            with open_image(row.path, limits) as image:
                budget.take(index, image.width * image.height * peak)
                return work(row, image)
        except RowError as error:
            return error

    if any(is_remote(row.path) for row in rows):
        threads = max(threads, FETCHERS)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[int, ImageRow, Future[T | RowError]]] = deque()
    todo = enumerate(rows)
    try:
        while True:
            while len(waiting) < AHEAD and (following := next(todo, None)) is not None:
                index, row = following
                waiting.append((index, row, pool.submit(do, index, row)))
            if not waiting:
                return
            index, row, future = waiting.popleft()
            result = future.result()
            yield row, result
            del result, future
            budget.give_back(index)
    finally:
        budget.close()
        pool.shutdown(wait=True, cancel_futures=True)
