"""Read and write TIFF files with 16 bits a sample in layouts that Pillow and OpenCV do not support.

libtiff, through Pillow, decompresses the samples as the pixels of a wider grey image. This module then interprets them:
which samples are colours, which one is alpha, and whether white is 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.types.arrays import DeepPixels

NEW_SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, EXTRA_SAMPLES, SAMPLE_FORMAT, ICC = (
    322,
    323,
    324,
    325,
    338,
    339,
    34675,
)
ASSOCIATED, STRAIGHT = 1, 2  # values of ExtraSamples: alpha with and without colours multiplied by it
UNSIGNED, UNDEFINED = 1, 4  # values of SampleFormat
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
OLD_SUBFILE_TYPE, SUB_DIRECTORIES = 255, 330
PAGES = 64  # pages that are searched for the first that is not a thumbnail
EXTRAS = 3  # additional samples per pixel that can be read
STRIP = 1 << 18  # bytes per strip in written files
LARGEST_TILE = 4096  # pixels by which a side of a tile may exceed that of the image
INTEROPERABILITY = 0xA005  # tag in the EXIF directory that points to another directory
EXIF_DIRECTORIES = (0x8769, 0x8825)  # tags that point to the EXIF and GPS directories
#: Tags that describe the layout of the pixels in a TIFF. They must not be copied to another file.
LAYOUT = frozenset((*range(254, 260), 262, 263, 266, 273, *range(277, 282), 284, 292, 293, 297, 317, *range(320, 326)))
LAYOUT |= {330, 332, 338, 339, 340, 341, 347, 512, 513, 514, 529, 530, 532, 34675}
UNSUPPORTED_SAMPLES = (
    "has pixels with a sign, with a floating point or with 32 bits, for which no white is agreed. "
    "Save it with 8 or 16 bits and no sign."
)


@functools.cache
def register() -> None:
    """Register the layouts of this module with Pillow, and stop its libtiff from writing to stderr.

    Pillow opens only files whose layout is in its table. It does not decode the layouts that are added here.
    """
    from PIL.TiffImagePlugin import OPEN_INFO  # imported here: commands on finished runs start without it

    _silence_libtiff()
    colours = ((WHITE_IS_ZERO, 1, "L"), (BLACK_IS_ZERO, 1, "L"), (RGB, 3, "RGB"))
    for prefix, (photometric, samples, mode), more in product((b"II", b"MM"), colours, range(EXTRAS + 1)):
        for kinds in product((0, ASSOCIATED, STRAIGHT), repeat=more):
            OPEN_INFO.setdefault((prefix, photometric, (1,), 1, (16,) * (samples + more), kinds), (mode, mode))


def _silence_libtiff() -> None:
    """Stop the libtiff that Pillow has loaded from writing errors to stderr. Pillow raises them as exceptions."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or a Pillow with a static libtiff
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libtiff" in line}
        for library in map(ctypes.CDLL, sorted(loaded)):
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened image is a TIFF of grey levels or RGB with 16 bits a sample."""
    tags = _tags(image)
    return set(tags.get(BITS, ())) == {16} and tags.get(PHOTOMETRIC, 0) in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)


def check_samples(image: Image.Image, path: str | Path) -> None:
    """Raise RowError where the samples of an opened TIFF have a sign, or its tiles are much larger than the image."""
    tags = _tags(image)
    width, height = tags.get(TILE_WIDTH, 0), tags.get(TILE_HEIGHT, 0)
    if max(width - tags.get(WIDTH, 0), height - tags.get(HEIGHT, 0)) > LARGEST_TILE:
        raise RowError(FailureCode.BAD_IMAGE, f"{path} has tiles of {width} × {height} pixels")
    if set(tags.get(SAMPLE_FORMAT, ())) - {UNSIGNED, UNDEFINED}:
        raise RowError(FailureCode.BAD_IMAGE, f"{path} {UNSUPPORTED_SAMPLES}")


def bits_of(image: Image.Image) -> int:
    """Return the bits per sample of an opened grey image with more than 8 bits."""
    return int(_tags(image).get(BITS, (16,))[0])


def to_main_page(image: Image.Image, path: str) -> None:
    """Seek an opened TIFF to its first page that is not a reduced version of another page.

    Raises:
        RowError: the page cannot be read, as in raw files of cameras.
    """
    if not _is_reduced(image):
        return
    for page in range(1, PAGES):
        try:
            image.seek(page)
        except EOFError:
            break
        if not _is_reduced(image):
            return
    image.seek(0)
    if SUB_DIRECTORIES in _tags(image):
        raise RowError(FailureCode.BAD_IMAGE, f"{path} is a raw file that shows its thumbnail alone. Convert it first.")


def _is_reduced(image: Image.Image) -> bool:
    tags = _tags(image)
    return bool(tags.get(NEW_SUBFILE_TYPE, 0) & 1) or tags.get(OLD_SUBFILE_TYPE) == 2


def read_deep(image: Image.Image, content: bytes) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | None]:
    """Decode an opened TIFF for which `is_deep` holds, without applying its orientation.

    Returns:
        pixels (H, W) or (H, W, 3) uint16, black 0 and white 65535, and alpha (H, W) uint16 or None.
    """
    tags = _tags(image)
    whole = _samples(tags, content, "<" if content[:2] == b"II" else ">")
    colours = 3 if tags.get(PHOTOMETRIC, 0) == RGB else 1
    pixels: NDArray[np.uint16] = whole[..., 0] if colours == 1 else whole[..., :3]
    if tags.get(PHOTOMETRIC, 0) == WHITE_IS_ZERO:
        pixels = np.iinfo(np.uint16).max - pixels
    kinds = tags.get(EXTRA_SAMPLES, ())
    at = next((k for k, kind in enumerate(kinds) if kind in (ASSOCIATED, STRAIGHT)), None)
    if at is None:
        return pixels, None
    alpha = whole[..., colours + at]
    return (_straight(pixels, alpha) if kinds[at] == ASSOCIATED else pixels), alpha


def _straight(pixels: NDArray[np.uint16], alpha: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Divide colours by alpha, to undo their multiplication."""
    top = np.iinfo(pixels.dtype).max
    share = np.maximum(alpha, 1).astype(np.float64) / top
    found = pixels / (share if pixels.ndim == 2 else share[..., None])
    return np.rint(np.minimum(found, top)).astype(pixels.dtype)


def _samples(tags: Mapping[int, Any], content: bytes, order: str) -> NDArray[np.uint16]:
    """Return all samples (H, W, samples) uint16."""
    width, height, count = tags[WIDTH], tags[HEIGHT], tags.get(SAMPLES, 1)
    tiled = TILE_OFFSETS in tags
    where, how_many = (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES)
    offsets = _several(tags[where])
    sizes = _several(tags.get(how_many, len(content) - offsets[-1]))
    if any(offset + size > len(content) for offset, size in zip(offsets, sizes, strict=True)):
        raise ValueError("the file is truncated")
    planes = count if tags.get(PLANAR, 1) == 2 else 1
    each, per_pixel = len(offsets) // planes, count // planes
    step, rows = (tags[TILE_WIDTH], tags[TILE_HEIGHT]) if tiled else (width, tags.get(ROWS_PER_STRIP, height))
    across = -(-width // step)
    layout: dict[int, Sequence[int]] = {
        WIDTH: [across * step * per_pixel],
        HEIGHT: [height],
        BITS: [16],
        COMPRESSION: [tags.get(COMPRESSION, 1)],
        PHOTOMETRIC: [BLACK_IS_ZERO],
        FILL_ORDER: [tags.get(FILL_ORDER, 1)],
        SAMPLES: [1],
        **({TILE_WIDTH: [step * per_pixel], TILE_HEIGHT: [rows]} if tiled else {ROWS_PER_STRIP: [min(rows, height)]}),
    }
    found = np.empty((height, width, count), np.uint16)
    for plane in range(planes):
        part = slice(plane * each, (plane + 1) * each)
        own = {where: offsets[part], how_many: sizes[part]}
        with Image.open(io.BytesIO(_with_directory(content, {**layout, **own}, order))) as image:
            wide = np.asarray(image).astype(np.uint16).reshape(height, across, step, per_pixel)
        if tags.get(PREDICTOR, 1) == 2:
            wide = np.cumsum(wide, axis=2, dtype=np.uint16)
        found[..., plane : plane + per_pixel] = wide.reshape(height, across * step, per_pixel)[:, :width]
    return found


def _with_directory(content: bytes, layout: Mapping[int, Sequence[int]], order: str) -> bytes:
    """Return the file with another directory, which holds only numbers."""
    start = len(content) + len(content) % 2
    place = start + 2 + 12 * len(layout) + 4
    lines, behind = b"", b""
    for tag, values in sorted(layout.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        kind = 4
        if len(values) == 1 and values[0] < 1 << 16:
            kind, packed = 3, struct.pack(f"{order}HH", values[0], 0)
        lines += struct.pack(f"{order}HHI", tag, kind, len(values))
        lines += packed if len(packed) == 4 else struct.pack(f"{order}I", place + len(behind))
        behind += packed if len(packed) > 4 else b""
    head = content[:2] + struct.pack(f"{order}HI", 42, start)
    directory = struct.pack(f"{order}H", len(layout)) + lines + bytes(4) + behind
    return b"".join((head, content[8:], bytes(len(content) % 2), directory))


def _several(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)


def _tags(image: Image.Image) -> Mapping[int, Any]:
    opened: Any = image
    return opened.tag_v2 if image.format == "TIFF" else {}


def encode_tiff(pixels: DeepPixels, alpha: bool, level: int, icc: bytes, exif: bytes) -> bytes:
    """Encode a TIFF with deflate, a colour profile, and the tags and directories of an EXIF block.

    Args:
        pixels: (H, W), (H, W, 3) or, with alpha last, (H, W, 4), uint8 or uint16.
        alpha: whether the last sample is alpha.
        level: of deflate, 1 to 9.
        icc, exif: blocks as files hold them; empty: none. EXIF that cannot be read is left out.
    """
    try:
        return _encoded(pixels, alpha, level, icc, exif)
    except Exception:  # tags of a wrong type do not affect the pixels
        return _encoded(pixels, alpha, level, icc, b"")


def _encoded(pixels: DeepPixels, alpha: bool, level: int, icc: bytes, exif: bytes) -> bytes:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    height, width = pixels.shape[:2]
    whole = pixels.reshape(height, width, -1)
    samples = whole.shape[2]
    differences = whole.copy()
    differences[:, 1:] -= whole[:, :-1]
    rows = max(1, STRIP // (width * samples * whole.itemsize))
    little = differences.astype(differences.dtype.newbyteorder("<"))
    strips = [zlib.compress(little[top : top + rows].tobytes(), level) for top in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    for tag, value in _exif_tags(exif).items():
        directory[tag] = value
    layout: dict[int, Any] = {
        WIDTH: width,
        HEIGHT: height,
        BITS: (8 * whole.itemsize,) * samples,
        COMPRESSION: 8,
        PHOTOMETRIC: RGB if samples > 2 else BLACK_IS_ZERO,
        SAMPLES: samples,
        ROWS_PER_STRIP: rows,
        STRIP_OFFSETS: tuple(sum(sizes[:k]) for k in range(len(sizes))),
        STRIP_BYTES: tuple(sizes),
        PLANAR: 1,
        PREDICTOR: 2,
    }
    layout |= {EXTRA_SAMPLES: (STRAIGHT,)} if alpha else {}
    layout |= {ICC: icc} if icc else {}
    for tag, value in layout.items():
        directory[tag] = value
    for tag in (STRIP_OFFSETS, STRIP_BYTES):
        directory.tagtype[tag] = 4
    file = io.BytesIO()
    directory.save(file)
    return b"".join((file.getvalue(), *strips))


def _exif_tags(block: bytes) -> dict[int, Any]:
    """Return the tags of an EXIF block, its directories as dictionaries."""
    exif = Image.Exif()
    if block:
        exif.load(block)
    return {
        tag: {name: one for name, one in exif.get_ifd(tag).items() if name != INTEROPERABILITY}
        if tag in EXIF_DIRECTORIES
        else value
        for tag, value in exif.items()
        if tag not in LAYOUT
    }
