"""Damaged and unusual image files, and the result that a run must have for each."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageDraw

WIDTH, HEIGHT = 96, 64
MAX_PIXELS = 100_000_000  # that the run allows
TRANSPOSED = {"5", "6", "7", "8"}  # EXIF orientations that swap width and height

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class UnusualImage:
    """An image file and the result that a run must have for it.

    Attributes:
        name: of the file.
        put: writes the file to a path.
        code: the failure that it must get, empty where the image is valid.
        size: (width, height) of a valid image, upright. Its top left corner is red, its bottom right corner blue.
    """

    name: str
    put: Callable[[Path], None]
    code: str = ""
    size: tuple[int, int] = (WIDTH, HEIGHT)


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Grass under sky, with a red top left corner and a blue bottom right one."""
    image = Image.new("RGB", (width, height), (120, 170, 230))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height // 2, width, height), fill=(70, 140, 50))
    draw.rectangle((0, 0, width // 3, height // 3), fill=(220, 30, 30))
    draw.rectangle((width - width // 3, height - height // 3, width, height), fill=(30, 30, 220))
    return image


def _saved(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, format, **options)
    return buffer.getvalue()


def _bytes(content: bytes) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.write_bytes(content)

    return put


def _well() -> list[UnusualImage]:
    """Images that must come out right."""
    jpeg, png = _saved("JPEG", quality=95), _saved("PNG")
    grey = picture().convert("L")
    alpha = picture()
    alpha.putalpha(Image.new("L", alpha.size, 255))
    frames = [picture(), Image.new("RGB", (WIDTH, HEIGHT), "white")]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 50}
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    sixteen = (np.asarray(grey).astype(np.uint16)) * 257
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    contents = {
        "plain.jpg": jpeg,
        "upper.JPG": jpeg,
        "progressive.jpg": _saved("JPEG", quality=95, progressive=True),
        "cmyk.jpg": _saved("JPEG", picture().convert("CMYK"), quality=95),
        "grey.jpg": _saved("JPEG", grey),
        "plain.png": png,
        "interlaced-name with  spaces.png": png,
        "quote'\"s.png": png,
        "new\nline.png": png,
        "emoji-🐈.png": png,
        "=cmd.png": png,
        os.fsdecode(b"latin-1-caf\xe9.png"): png,
        "palette.png": _saved("PNG", palette),
        "palette-transparent.png": _saved("PNG", palette, transparency=7),
        "one-bit.png": _saved("PNG", grey.convert("1")),
        "grey-alpha.png": _saved("PNG", alpha.convert("LA")),
        "rgba.png": _saved("PNG", alpha),
        "sixteen.png": _saved("PNG", Image.fromarray(sixteen)),
        "sixteen.tif": _saved("TIFF", Image.fromarray(sixteen)),
        "lzw.tif": _saved("TIFF", compression="tiff_lzw"),
        "plain.bmp": _saved("BMP"),
        "plain.webp": _saved("WEBP", lossless=True),
        "animated.gif": _saved("GIF", frames[0], **animated),
        "animated.webp": _saved("WEBP", frames[0], lossless=True, **animated),
        "animated.png": _saved("PNG", frames[0], **animated),
        "two-pictures.jpg": _saved("MPO", frames[0], save_all=True, append_images=frames[1:], quality=95),
        "wavelets.jp2": _saved("JPEG2000"),
        "a-png-named.jpg": png,
        "a-jpeg-named.png": jpeg,
        "icc.jpg": _saved("JPEG", quality=95, icc_profile=profile),
        "broken-icc.png": _saved("PNG", icc_profile=b"no profile at all"),
        "broken-exif.jpg": _saved("JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"),
        "garbage-behind.jpg": jpeg + b"\0" * 1000,
    }
    images = [UnusualImage(name, _bytes(content)) for name, content in contents.items()]
    images.append(UnusualImage("one-pixel.png", _bytes(_saved("PNG", picture(1, 1))), size=(1, 1)))
    images.append(UnusualImage("hundred-megapixels.png", _huge, size=(10_000, 10_000)))
    images.append(UnusualImage("needle.png", _bytes(_saved("PNG", picture(1, 20_000))), size=(1, 20_000)))
    images += [_rotated(orientation) for orientation in "12345678"]
    images.append(UnusualImage("link.png", lambda path: path.symlink_to("plain.png")))
    return images


def _huge(path: Path) -> None:
    picture(10_000, 10_000).save(path, compress_level=1)


def _rotated(orientation: str) -> UnusualImage:
    """A photograph as a camera held that way stores it, which is upright once its EXIF is obeyed."""
    undo = {
        "2": Image.Transpose.FLIP_LEFT_RIGHT,
        "3": Image.Transpose.ROTATE_180,
        "4": Image.Transpose.FLIP_TOP_BOTTOM,
        "5": Image.Transpose.TRANSPOSE,
        "6": Image.Transpose.ROTATE_90,
        "7": Image.Transpose.TRANSVERSE,
        "8": Image.Transpose.ROTATE_270,
    }
    stored = picture().transpose(undo[orientation]) if orientation in undo else picture()
    exif = Image.Exif()
    exif[0x0112] = int(orientation)
    return UnusualImage(f"exif-{orientation}.jpg", _bytes(_saved("JPEG", stored, quality=95, exif=exif)))


def _ill() -> list[UnusualImage]:
    """Files that must fail, each with its code."""
    jpeg, png = _saved("JPEG"), _saved("PNG")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.txt", "no photo")
    damaged = bytearray(png)
    damaged[len(damaged) // 2] ^= 0xFF
    contents = {
        "no-bytes.jpg": (b"", "empty"),
        "text.jpg": (b"I am a text.\n", "not_an_image"),
        "page.png": (b"<html><body>404</body></html>", "not_an_image"),
        "archive.jpg": (archive.getvalue(), "not_an_image"),
        "zeros.png": (b"\0" * 4000, "not_an_image"),
        "photo.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 500, "not_an_image"),
        "three-bytes.jpg": (jpeg[:3], "not_an_image"),
        "header-only.jpg": (jpeg[:200], "truncated"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "all-but-the-end.jpg": (jpeg[: -len(jpeg) // 10], "truncated"),
        "signature-only.png": (png[:8], "not_an_image"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "half.webp": (_saved("WEBP")[:150], "bad_image"),
        "half.tif": (_saved("TIFF")[: WIDTH * HEIGHT], "truncated"),
        "flipped.png": (bytes(damaged), "bad_image"),
        "bomb.png": (_bomb(60_000, 60_000), "too_large"),
        "float.tif": (_saved("TIFF", Image.fromarray(np.ones((8, 8), np.float32))), "bad_image"),
    }
    images = [UnusualImage(name, _bytes(content), code) for name, (content, code) in contents.items()]
    images.append(UnusualImage("dangling.png", lambda path: path.symlink_to("nowhere.png"), "missing"))
    images.append(UnusualImage("loop.png", lambda path: path.symlink_to("loop.png"), "unreadable"))
    if not _reads_everything():
        images.append(UnusualImage("forbidden.png", _forbidden, "unreadable"))
    return images


def _reads_everything() -> bool:
    """Whether this user, as root, is refused no file."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).chmod(0)
        return os.access(file.name, os.R_OK, effective_ids=True)


def _forbidden(path: Path) -> None:
    path.write_bytes(_saved("PNG"))
    path.chmod(0)


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes with an enormous size in its header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def unusual_images() -> list[UnusualImage]:
    """Return all of them, in the order in which a run lists them."""
    return sorted([*_well(), *_ill()], key=lambda image: os.fsencode(image.name))


def fill(folder: Path) -> list[UnusualImage]:
    """Write every image into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    images = unusual_images()
    for image in images:
        image.put(folder / image.name)
    return images


def upright(pixels: Array) -> bool:
    """Whether an image has the picture's red corner at its top left and its blue one at its bottom right.

    Pictures without colour are held to their brightness; one-pixel ones have no corners.
    """
    h, w = pixels.shape[:2]
    if min(h, w) < 8:
        return True
    corners = pixels[: h // 4, : w // 4], pixels[-h // 4 :, -w // 4 :], pixels[: h // 4, -w // 4 :]
    first, last, sky = (corner.mean(axis=(0, 1)) for corner in corners)
    if np.ptp(pixels.astype(int), axis=-1).max() < 20:
        return bool(sky.mean() > first.mean() and sky.mean() > last.mean())
    return bool(first[0] > 150 > first[2] and last[2] > 150 > last[0])
