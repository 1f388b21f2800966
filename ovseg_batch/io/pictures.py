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
from PIL import Image, ImageCms

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io.hashing import key_hash
from ovseg_batch.io.images import ORIENTATION, decode, decoding, orientation_of, upright
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
BITS_PER_SAMPLE = 258
EXIF_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # tags that point to the camera's, the place's and a format's tags
#: Tags of a TIFF that say how its own pixels lie in the file: no part of what another file should keep.
LAYOUT = frozenset((*range(254, 260), 262, 263, 266, 273, *range(277, 282), 284, 292, 293, 297, 317, *range(320, 326)))
LAYOUT |= {330, 332, 338, 339, 340, 341, 347, 512, 513, 514, 529, 530, 532, 34675}


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
        opened: Any = image
        content = opened.fp.getvalue()  # `open_image` opens bytes
        deep = _is_deep(image)
        image.load()
        icc, orientation = image.info.get("icc_profile") or b"", orientation_of(image)
        if deep:
            pixels, alpha = _deep(content, path, orientation)
            return Picture(pixels, alpha, icc if pixels.ndim == 3 else b"", _exif(image))
        if image.mode == "CMYK" and icc:
            image, icc = _by_profile(image, icc), b""
        elif image.mode in ("CMYK", "LAB", "YCbCr", "L", "LA", "1"):
            icc = b""  # of another colour space than what is written
        if image.has_transparency_data:
            whole = upright(np.asarray(image.convert("RGBA")), orientation)
            return Picture(np.ascontiguousarray(whole[..., :3]), whole[..., 3].copy(), icc, _exif(image))
        return Picture(decode(image, path), None, icc, _exif(image))


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel, which Pillow cuts to 8 in colour."""
    opened: Any = image
    if image.format == "TIFF":
        return set(opened.tag_v2.get(BITS_PER_SAMPLE, ())) == {16} and image.mode in ("RGB", "RGBA", "I;16", "I;16B")
    return image.format == "PNG" and bool(opened.tile) and "16" in str(opened.tile[0][3])


def _deep(content: bytes, path: str | Path, orientation: int) -> tuple[Array, Array | None]:
    import cv2  # takes 40 MB, which exports save that only name files

    whole = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if whole is None or whole.dtype != np.uint16:
        raise RowError(FailureCode.BAD_IMAGE, f"{path}: its 16 bits a channel cannot be read")
    whole = upright(whole, orientation)
    if whole.ndim == 2:
        return np.repeat(whole[..., None], 3, axis=2), None
    pixels = np.ascontiguousarray(whole[..., 2::-1])
    return pixels, np.ascontiguousarray(whole[..., 3]) if whole.shape[2] == 4 else None


def _by_profile(image: Image.Image, icc: bytes) -> Image.Image:
    """CMYK to sRGB as the picture's own profile says; as Pillow does without, where that cannot be read."""
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
        for tag in (ORIENTATION, *(LAYOUT if image.format == "TIFF" else ())):
            exif.pop(tag, None)
        return exif.tobytes() if len(exif) else b""
    except Exception:  # a broken block says nothing about the pixels
        return b""


def encode_picture(picture: Picture, encoding: Encoding) -> bytes:
    """The file of a picture.

    Raises:
        ValueError: transparency, or 16 bits, for a format that holds none.
    """
    kind, alpha = encoding.format, picture.alpha
    if alpha is not None and kind not in HOLDS_ALPHA:
        raise ValueError(f"{kind} holds no transparency")
    if picture.pixels.dtype == np.uint16:
        return _encode_deep(picture, encoding)
    pixels = picture.pixels if alpha is None else _with_alpha(picture.pixels, alpha)
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
    blocks = {"icc_profile": picture.icc, "exif": picture.exif}
    options |= {name: block for name, block in blocks.items() if block and name.split("_")[0] in encoding.keep}
    image = Image.fromarray(pixels)
    if kind == "tiff" and "exif" in options:
        return _tiff_with_exif(image, options)
    return _saved(image, kind, options)


def _tiff_with_exif(image: Image.Image, options: dict[str, Any]) -> bytes:
    """Return a TIFF with the tags of EXIF that libtiff takes: no directory in a tag, or none at all."""
    plain = {name: value for name, value in options.items() if name != "exif"}
    exif = Image.Exif()
    try:
        exif.load(options["exif"])
        for tag in EXIF_DIRECTORIES:
            exif.pop(tag, None)
        return _saved(image, "tiff", {**plain, "exif": exif})
    except Exception:  # a block that Pillow cannot read, or tags that libtiff refuses
        return _saved(image, "tiff", plain)


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind.upper(), **options)
    return file.getvalue()


def _encode_deep(picture: Picture, encoding: Encoding) -> bytes:
    import cv2

    kind, alpha, pixels = encoding.format, picture.alpha, picture.pixels
    if kind not in HOLDS_16_BITS:
        raise ValueError(f"{kind} holds no 16 bits a channel")
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1] if alpha is None else _with_alpha(pixels[..., ::-1], alpha)
    blocks = [(cv2.IMAGE_METADATA_EXIF, picture.exif, "exif"), (cv2.IMAGE_METADATA_ICCP, picture.icc, "icc")]
    kept = [(number, block) for number, block, name in blocks if block and name in encoding.keep and kind == "png"]
    options = [cv2.IMWRITE_PNG_COMPRESSION, encoding.level] if kind == "png" else []
    written, content = cv2.imencodeWithMetadata(
        f".{kind}",
        np.ascontiguousarray(pixels),
        [number for number, _ in kept],
        [np.frombuffer(block.removeprefix(b"Exif\x00\x00"), np.uint8) for _, block in kept],
        options,
    )
    if not written:
        raise ValueError(f"{kind} cannot be written with 16 bits a channel")
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
