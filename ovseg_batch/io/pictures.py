"""Images as they are edited and written again: with their depth, transparency, colour profile and EXIF.

`images.py` gives the models eight bits of RGB. Here 16 bits a channel stay 16 (PNG and TIFF), transparency stays beside
the colours, and the profile and EXIF go into the new file, with the orientation applied once and forgotten.
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

Array = np.ndarray[Any, Any]

Format = Literal["png", "webp", "jpeg", "tiff"]
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "png": (".png",),
    "webp": (".webp",),
    "jpeg": (".jpg", ".jpeg", ".jpe"),
    "tiff": (".tif", ".tiff"),
}
UNKNOWN_SUFFIX = ".file"  # put behind names that are no image's, so that `a` and `a.png` stay two
KNOWN = IMAGE_SUFFIXES | {UNKNOWN_SUFFIX}
HOLDS_ALPHA = frozenset({"png", "webp", "tiff"})
HOLDS_16_BITS = frozenset({"png", "tiff"})
LONGEST_SIDE: dict[Format, int] = {"webp": 16_383, "jpeg": 65_500}
NAMES = {"icc": "a colour profile", "exif": "EXIF"}  # blocks of a picture
LARGEST_BLOCK = {("jpeg", "exif"): 65_533, ("jpeg", "icc"): 255 * 65_519}  # bytes that a format can hold


@dataclass(frozen=True, slots=True)
class Picture:
    """`pixels` (H, W, 3) or, grey, (H, W), uint8 or uint16; `alpha` (H, W) of the same depth, or None where opaque.

    `icc` and `exif` are the blocks as files hold them, empty where there are none.
    """

    pixels: Array
    alpha: Array | None = None
    icc: bytes = b""
    exif: bytes = b""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pictures are written. `quality` None is lossless where the format can be, and 95 for JPEG."""

    format: Format
    quality: int | None = None
    level: int = 6  # of PNG's and TIFF's deflate: 1 quick, 9 small
    keep: frozenset[str] = field(default_factory=lambda: frozenset({"icc", "exif"}))


def read_picture(image: Image.Image, path: str | Path) -> Picture:
    """Decode an opened image, upright.

    CMYK becomes RGB, by its profile where it has one, which then is dropped. Grey becomes RGB.

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
            icc = b""  # of another colour space than what is written
        if image.has_transparency_data:
            whole = upright(np.asarray(image.convert("RGBA")), orientation)
            return Picture(np.ascontiguousarray(whole[..., :3]), whole[..., 3].copy(), icc, _exif(image))
        return Picture(decode(image, path), None, icc, _exif(image))


def _by_profile(image: Image.Image, icc: bytes) -> Image.Image:
    """CMYK to sRGB as the picture's own profile says; as Pillow does without, where that cannot be read."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    return turned or image.convert("RGB")


def _exif(image: Image.Image) -> bytes:
    """The EXIF block without orientation, which has been applied, and without the thumbnail, which shows the past."""
    try:
        exif = image.getexif()
        for tag in (ORIENTATION, *(tiff.LAYOUT if image.format == "TIFF" else ())):
            exif.pop(tag, None)
        return exif.tobytes() if len(exif) else b""
    except Exception:  # a broken block says nothing about the pixels
        return b""


def encode_picture(picture: Picture, encoding: Encoding) -> bytes:
    """The file of a picture, without what `left_out` names.

    Raises:
        RowError: `UNWRITABLE`, a picture that the format cannot hold, or that its encoder does not take.
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
    """Return which of a picture's blocks its file will not have though it should, and why."""
    return [why for name in sorted(encoding.keep) if (why := _unfit(name, picture, encoding))]


def _unfit(name: str, picture: Picture, encoding: Encoding) -> str:
    """Return why a block cannot go into the file; empty where it can or there is none."""
    block = getattr(picture, name)
    if not block:
        return ""
    space = b"RGB " if picture.pixels.ndim == 3 else b"GRAY"
    if name == "icc" and block[16:20] != space:
        return f"a colour profile that is not of {space.decode().strip()}"
    most = LARGEST_BLOCK.get((encoding.format, name), len(block))
    return f"{NAMES[name]} of more than {most} bytes, which {encoding.format} cannot hold" if len(block) > most else ""


def _blocks(picture: Picture, encoding: Encoding) -> dict[str, bytes]:
    """Return the blocks that go into the file, by their names, empty where there are none."""
    return {
        name: getattr(picture, name) if name in encoding.keep and not _unfit(name, picture, encoding) else b""
        for name in NAMES
    }


def _encoded(picture: Picture, encoding: Encoding, blocks: dict[str, bytes]) -> bytes:
    kind, alpha = encoding.format, picture.alpha
    pixels = picture.pixels if alpha is None else _with_alpha(picture.pixels, alpha)
    deep = pixels.dtype == np.uint16
    if kind == "tiff" and (deep or blocks["exif"]):  # libtiff takes no directories of EXIF, and Pillow no 16 bits
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


def _deep_png(pixels: Array, encoding: Encoding, blocks: dict[str, bytes]) -> bytes:
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


def _with_alpha(pixels: Array, alpha: Array) -> Array:
    whole = np.empty((*alpha.shape, 4), pixels.dtype)
    whole[..., :3], whole[..., 3] = pixels, alpha
    return whole


def output_name(file_name: str, format: Format) -> str:
    """What the edited image is called: its name, with the format's suffix behind it unless it has that already.

    No two names give one: `a.jpg` becomes `a.jpg.png`, `a.png` stays, and an image that was called `a.jpg.png` becomes
    `a.jpg.png.png`.
    """
    stem, suffix = _split(file_name)
    if suffix.lower() in SUFFIXES[format] and _split(stem)[1].lower() not in KNOWN:
        return file_name
    return f"{file_name}{'' if suffix.lower() in IMAGE_SUFFIXES else UNKNOWN_SUFFIX}{SUFFIXES[format][0]}"


def unique_name(row: ImageRow) -> str:
    """Return a row's file name; with a hash of the row's key before the suffix where other rows have the same name."""
    if not row.shared:
        return row.file_name
    stem, suffix = _split(row.file_name)
    return f"{stem}-{key_hash(row.key):016x}{suffix}"


def part_name(folder: str, number: int, label: str, suffix: str) -> str:
    """`photos/cat.jpg/001-tabby.png`: what is made of one mask of an image, in a folder for the image."""
    safe = "".join(c if c.isalnum() or c in " -_" else "_" for c in label)[:60].strip() or "mask"
    return f"{folder}/{number:03d}-{safe}{suffix}"


def _split(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    stem, dot, suffix = last.rpartition(".")
    return (f"{folder}/{stem}" if folder else stem, f".{suffix}") if dot else (name, "")
