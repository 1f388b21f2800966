"""Read images for editing and write them again, with their bit depth, transparency, colour profile and EXIF.

`images.py` decodes to 8-bit RGB for the models. This module keeps 16 bits a channel (PNG and TIFF), transparency, the
colour profile and EXIF. It applies the orientation and removes it from EXIF.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ovseg_batch.errors import FailureCode, RowError, is_out_of_memory
from ovseg_batch.io import tiff
from ovseg_batch.io.hashing import key_hash
from ovseg_batch.io.images import ORIENTATION, decode, decoding, is_deep, orientation_of, read_deep, upright
from ovseg_batch.io.sources import IMAGE_SUFFIXES
from ovseg_batch.types import ImageRow
from ovseg_batch.types.arrays import DeepPixels

Format = Literal["png", "webp", "jpeg", "tiff"]
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "png": (".png",),
    "webp": (".webp",),
    "jpeg": (".jpg", ".jpeg", ".jpe"),
    "tiff": (".tif", ".tiff"),
}
UNKNOWN_SUFFIX = ".file"  # appended to names without an image suffix, so that `a` and `a.png` stay distinct
KNOWN = IMAGE_SUFFIXES | {UNKNOWN_SUFFIX}
HOLDS_ALPHA = frozenset({"png", "webp", "tiff"})
HOLDS_16_BITS = frozenset({"png", "tiff"})
LONGEST_SIDE: dict[Format, int] = {"webp": 16_383, "jpeg": 65_500}
NAMES = {"icc": "a colour profile", "exif": "EXIF"}  # names of metadata blocks in messages
LARGEST_BLOCK = {("jpeg", "exif"): 65_533, ("jpeg", "icc"): 255 * 65_519}  # bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image with its metadata.

    Attributes:
        pixels: (H, W, 3), or (H, W) if grey; uint8 or uint16.
        alpha: (H, W) of the same dtype, or None if opaque.
        icc, exif: metadata blocks as files hold them; empty if absent.
    """

    pixels: DeepPixels
    alpha: DeepPixels | None = None
    icc: bytes = b""
    exif: bytes = b""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How images are encoded. `quality` None is lossless where the format allows it, and 95 for JPEG."""

    format: Format
    quality: int | None = None
    level: int = 6  # deflate level of PNG and TIFF: 1 is fastest, 9 is smallest
    keep: frozenset[str] = field(default_factory=lambda: frozenset({"icc", "exif"}))


def read_picture(image: Image.Image, path: str | Path) -> Picture:
    """Decode an opened image, upright.

    Grey becomes RGB. CMYK becomes RGB through its colour profile, if any, which is then dropped.

    Returns:
        `pixels` (H, W, 3); where the file has 16 bits a channel, uint16.

    Raises:
        RowError: `TRUNCATED` or `BAD_IMAGE`.
    """
    with decoding(path):
        if is_deep(image):
            pixels, alpha = read_deep(image, path)
            return Picture(pixels, alpha, image.info.get("icc_profile") or b"", _exif(image))
        tiff.check_samples(image, path)
        image.load()
        icc, orientation = image.info.get("icc_profile") or b"", orientation_of(image)
        if image.mode == "CMYK" and icc:
            image, icc = _by_profile(image, icc), b""
        elif image.mode in ("CMYK", "LAB", "YCbCr", "L", "LA", "1"):
            icc = b""  # the profile describes another colour space than the output
        if image.has_transparency_data:
            whole = upright(np.asarray(image.convert("RGBA")), orientation)
            return Picture(np.ascontiguousarray(whole[..., :3]), whole[..., 3].copy(), icc, _exif(image))
        return Picture(decode(image, path), None, icc, _exif(image))


def _by_profile(image: Image.Image, icc: bytes) -> Image.Image:
    """Convert CMYK to sRGB by the embedded profile, or by Pillow's default where the profile cannot be read."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    return turned or image.convert("RGB")


def _exif(image: Image.Image) -> bytes:
    """Return the EXIF block without orientation, which is already applied, and without the outdated thumbnail."""
    try:
        exif = image.getexif()
        for tag in (ORIENTATION, *(tiff.LAYOUT if image.format == "TIFF" else ())):
            exif.pop(tag, None)
        return exif.tobytes() if len(exif) else b""
    except Exception:  # a broken block does not affect the pixels
        return b""


def encode_picture(picture: Picture, encoding: Encoding) -> bytes:
    """Return the encoded file of an image, without the blocks that `left_out` names.

    Raises:
        RowError: `UNWRITABLE` where the format cannot hold the image, or its encoder fails.
    """
    kind, (height, width) = encoding.format, picture.pixels.shape[:2]
    if max(height, width) > LONGEST_SIDE.get(kind, height + width):
        raise RowError(
            FailureCode.UNWRITABLE,
            f"the edited picture is {width} × {height} pixels, and {kind} holds at most {LONGEST_SIDE[kind]} a side. "
            f"Set edit.format to png or tiff",
        )
    if picture.alpha is not None and kind not in HOLDS_ALPHA:
        raise RowError(FailureCode.UNWRITABLE, f"{kind} holds no transparency")
    if picture.pixels.dtype == np.uint16 and kind not in HOLDS_16_BITS:
        raise RowError(FailureCode.UNWRITABLE, f"{kind} holds no 16 bits a channel")
    try:
        return _encoded(picture, encoding, _blocks(picture, encoding))
    except Exception as error:  # encoders raise many classes
        code = FailureCode.OUT_OF_MEMORY if is_out_of_memory(error) else FailureCode.UNWRITABLE
        raise RowError(code, f"{kind} could not be written: {type(error).__name__}: {error}") from None


def left_out(picture: Picture, encoding: Encoding) -> list[str]:
    """Return the metadata blocks that the file should have but cannot hold, with the reasons."""
    return [why for name in sorted(encoding.keep) if (why := _unfit(name, picture, encoding))]


def _unfit(name: str, picture: Picture, encoding: Encoding) -> str:
    """Return why the file cannot hold a block. Empty if it can, or if there is no block."""
    block = getattr(picture, name)
    if not block:
        return ""
    space = b"RGB " if picture.pixels.ndim == 3 else b"GRAY"
    if name == "icc" and block[16:20] != space:
        return f"a colour profile that is not of {space.decode().strip()}"
    most = LARGEST_BLOCK.get((encoding.format, name), len(block))
    return f"{NAMES[name]} of more than {most} bytes, which {encoding.format} cannot hold" if len(block) > most else ""


def _blocks(picture: Picture, encoding: Encoding) -> dict[str, bytes]:
    """Return the metadata blocks that the file will hold, by name. Absent blocks are empty."""
    return {
        name: getattr(picture, name) if name in encoding.keep and not _unfit(name, picture, encoding) else b""
        for name in NAMES
    }


def _encoded(picture: Picture, encoding: Encoding, blocks: dict[str, bytes]) -> bytes:
    kind, alpha = encoding.format, picture.alpha
    pixels = picture.pixels if alpha is None else _with_alpha(picture.pixels, alpha)
    deep = pixels.dtype == np.uint16
    # libtiff does not write EXIF directories, and Pillow does not write 16 bits
    if kind == "tiff" and (deep or blocks["exif"]):
        return tiff.encode_tiff(pixels, alpha is not None, encoding.level, blocks["icc"], blocks["exif"])
    if deep:
        return _deep_png(pixels, encoding, blocks)
    options: dict[str, Any] = {}
    if kind == "png":
        options = {"compress_level": encoding.level}
    elif kind == "webp":
        lossless = encoding.quality is None
        options = {"lossless": lossless, "quality": 60 if lossless else encoding.quality, "method": 2, "exact": True}
    elif kind == "jpeg":
        options = {"quality": encoding.quality or 95, "subsampling": 0}
    else:
        options = {"compression": "tiff_adobe_deflate"}
    named = {"icc_profile": blocks["icc"], "exif": blocks["exif"]}
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, kind.upper(), **options, **{name: block for name, block in named.items() if block}
    )
    return file.getvalue()


def _deep_png(pixels: DeepPixels, encoding: Encoding, blocks: dict[str, bytes]) -> bytes:
    import cv2

    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    kept = [
        (cv2.IMAGE_METADATA_EXIF, blocks["exif"].removeprefix(b"Exif\x00\x00")),
        (cv2.IMAGE_METADATA_ICCP, blocks["icc"]),
    ]
    kept = [(number, block) for number, block in kept if block]
    written, content = cv2.imencodeWithMetadata(
        ".png",
        np.ascontiguousarray(pixels),
        [number for number, _ in kept],
        [np.frombuffer(block, np.uint8) for _, block in kept],
        [cv2.IMWRITE_PNG_COMPRESSION, encoding.level],
    )
    if not written:
        raise ValueError("16 bits a channel are refused")
    return bytes(content)


def _with_alpha(pixels: DeepPixels, alpha: DeepPixels) -> DeepPixels:
    whole = np.empty((*alpha.shape, 4), pixels.dtype)
    whole[..., :3], whole[..., 3] = pixels, alpha
    return whole


def output_name(file_name: str, format: Format) -> str:
    """Return the name of an edited image: the file name, with the format's suffix appended unless it has that suffix.

    Different names stay different: `a.jpg` becomes `a.jpg.png`, `a.png` stays, and an image that was called `a.jpg.png`
    becomes `a.jpg.png.png`.
    """
    stem, suffix = _split(file_name)
    if suffix.lower() in SUFFIXES[format] and _split(stem)[1].lower() not in KNOWN:
        return file_name
    return f"{file_name}{'' if suffix.lower() in IMAGE_SUFFIXES else UNKNOWN_SUFFIX}{SUFFIXES[format][0]}"


def unique_name(row: ImageRow) -> str:
    """Return a row's file name. Where other rows have the same name, a hash of the key precedes the suffix."""
    if not row.shared:
        return row.file_name
    stem, suffix = _split(row.file_name)
    return f"{stem}-{key_hash(row.key):016x}{suffix}"


def part_name(folder: str, number: int, label: str, suffix: str) -> str:
    """Return the name of an output of one mask, such as `photos/cat.jpg/001-tabby.png`: the folder is the image's."""
    safe = "".join(c if c.isalnum() or c in " -_" else "_" for c in label)[:60].strip() or "mask"
    return f"{folder}/{number:03d}-{safe}{suffix}"


def _split(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    stem, dot, suffix = last.rpartition(".")
    return (f"{folder}/{stem}" if folder else stem, f".{suffix}") if dot else (name, "")
