"""Mutated image files of every format, given to everything that opens, decodes and writes images."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from ovseg_batch.errors import RowError
from ovseg_batch.io.images import decode, open_image, reduce, upright_size
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.pictures import HOLDS_16_BITS, LONGEST_SIDE, Encoding, Format, Picture, encode_picture, read_picture
from ovseg_batch.stages.edit.source import fitting
from tests.harness.fuzzing import Input, Violation
from tests.harness.image_variants import grey_files, png_file, scene_files
from tests.harness.mutations import mutate_bytes

Array = np.ndarray[Any, Any]

HEIGHT, WIDTH = 40, 56
MAX_PIXELS = 1 << 20
LIMITS = Limits(MAX_PIXELS, 1 << 24)
PEAK = 128 * MAX_PIXELS  # bytes by which the memory may grow: 128 a pixel of the largest picture that is allowed
SHORTEST = 16  # pixels of the longer side to which a picture is reduced
EXACT: tuple[Format, ...] = ("png", "tiff")
FORMATS: tuple[Format, ...] = ("png", "webp", "jpeg", "tiff")
TIFF_COMPRESSIONS = (
    *("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg", "zstd", "lzma"),
    *("group3", "group4", "tiff_ccitt"),
)


class Images:
    """Image files in every format that is read."""

    name = "images"

    def draw(self, seed: int) -> Input:
        """Return the mutated file of a seed. Few files are whole."""
        files = pool()
        names = list(files)
        random = Random(f"images:{seed}")
        name = names[seed % len(names)]
        other = files[random.choice(names)] if random.random() < 0.3 else files[name]
        mutated, mutation = mutate_bytes(files[name], other, random)
        return Input(form_of(name), mutation, name, mutated)

    def check(self, given: Input) -> bool:
        """Open the file, decode it in every way, and write it in every format."""
        with tempfile.TemporaryDirectory(prefix="ovseg-fuzz-") as folder:
            path = Path(folder) / f"image{Path(given.name).suffix}"
            path.write_bytes(given.content)
            return check_image(path)


def form_of(name: str) -> str:
    """Return the kind of file that the table names."""
    return Path(name).suffix.removeprefix(".")


def check_image(path: Path) -> bool:
    """Give a file to everything that reads images. Return whether it could be decoded.

    Raises:
        Violation: two ways to read it differ, or what was read is no picture.
    """
    size = _attempt(lambda: _opened(path, upright_size))
    pixels = _attempt(lambda: _opened(path, decode))
    reduced = _attempt(lambda: _opened(path, _reduced))
    picture = _attempt(lambda: _opened(path, read_picture))
    answers = {"decode": pixels, "reduce": reduced, "read_picture": picture}
    failed = {name: answer for name, answer in answers.items() if isinstance(answer, RowError)}
    if failed and len(failed) < len(answers):
        reasons = "; ".join(f"{name}: {error.code}: {error.message}" for name, error in failed.items())
        raise Violation(f"only some ways to read it fail: {reasons}")
    if isinstance(pixels, RowError) or isinstance(picture, RowError) or isinstance(reduced, RowError):
        return False
    if isinstance(size, RowError):
        raise Violation(f"it is decoded, but has no size: {size.message}")
    if pixels.dtype != np.uint8 or pixels.shape != (*size, 3):
        raise Violation(f"decode gives {pixels.dtype} {pixels.shape}, and upright_size {size}")
    if reduced.dtype != np.uint8 or not _is_reduction(reduced.shape, size):
        raise Violation(f"reduced, it is {reduced.dtype} {reduced.shape}, and upright_size gives {size}")
    _check_picture(picture, size)
    return True


def _opened(path: Path, read: Callable[[Image.Image, Path], Any]) -> Any:
    with open_image(str(path), LIMITS) as image:
        return read(image, path)


def _attempt(read: Callable[[], Any]) -> Any:
    """Return what a function returns, or the RowError that it raises, whose text can be printed."""
    try:
        return read()
    except RowError as error:
        error.message.encode("utf-8")
        return error


def _reduced(image: Image.Image, path: Path) -> Array:
    upright_size(image, path)  # as the dense stage does before
    reduce(image, SHORTEST)
    return decode(image, path)


def _is_reduction(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Return whether a shape is (H, W, 3) of a size divided by 1, 2, 4 or 8, rounded up."""
    return any(shape == (-(-size[0] // share), -(-size[1] // share), 3) for share in (1, 2, 4, 8))


def _check_picture(picture: Picture, size: tuple[int, int]) -> None:
    pixels, alpha = picture.pixels, picture.alpha
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.shape != (*size, 3):
        raise Violation(f"read_picture gives {pixels.dtype} {pixels.shape}, and upright_size {size}")
    if alpha is not None and (alpha.dtype, alpha.shape) != (pixels.dtype, size):
        raise Violation(f"alpha is {alpha.dtype} {alpha.shape}, and the picture {pixels.dtype} {pixels.shape}")
    for kind in FORMATS:
        given = fitting(picture, kind)
        content = _attempt(functools.partial(encode_picture, given, Encoding(kind, level=1)))
        if isinstance(content, RowError):
            if max(size) <= LONGEST_SIDE.get(kind, max(size)):
                raise Violation(f"{kind} could not be written: {content.message}")
            continue
        with Image.open(io.BytesIO(content)) as written:
            if (written.height, written.width) != size:
                raise Violation(f"as {kind} it has {written.size}, and {size} was given")
        if kind in EXACT:
            _check_exact(given, content, kind)


def _check_exact(given: Picture, content: bytes, kind: Format) -> None:
    """Check that a file without losses holds exactly what was written."""
    with tempfile.TemporaryDirectory(prefix="ovseg-fuzz-") as folder:
        path = Path(folder) / f"written.{kind}"
        path.write_bytes(content)
        found = _opened(path, read_picture)
    same = found.pixels.dtype == given.pixels.dtype or kind not in HOLDS_16_BITS
    if not (same and np.array_equal(found.pixels, given.pixels)):
        raise Violation(f"{kind} holds other pixels than were written")
    if given.alpha is not None and not (found.alpha is not None and np.array_equal(found.alpha, given.alpha)):
        raise Violation(f"{kind} holds another transparency than was written")


# --- the whole files ---


@functools.cache
def pool() -> dict[str, bytes]:
    """Return whole files of every format and layout, by name, in a fixed order."""
    rgb = _scene()
    grey = np.ascontiguousarray(rgb[..., 0])
    files = {f"{name}": content for name, content in scene_files(rgb, 6).items()}
    files |= {f"grey-{name}": content for name, content in grey_files(grey).items()}
    files |= _saved_by_pillow(Image.fromarray(rgb)) | _tiffs(rgb) | _pngs(rgb)
    return dict(sorted(files.items()))


def _scene() -> Array:
    """Return (H, W, 3) uint8 with smooth parts, edges and noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([4 * x, 6 * y, 255 - 2 * (x + y)], axis=-1).astype(np.uint8)
    rgb[10:25, 12:40] = (220, 40, 60)
    rgb[28:, 30:] ^= np.random.default_rng(0).integers(0, 255, (HEIGHT - 28, WIDTH - 30, 3), np.uint8)
    return rgb


def _saved_by_pillow(image: Image.Image) -> dict[str, bytes]:
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    grey, palette = image.convert("L"), image.quantize(16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 8, "a scene"
    frames: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(180), image.rotate(90)], "duration": 40}
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Title", "a scene", zip=True)
    plan: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "progressive.jpg": (image, "JPEG", {"progressive": True, "exif": exif.tobytes()}),
        "cmyk.jpg": (image.convert("CMYK"), "JPEG", {"icc_profile": profile}),
        "grey.jpg": (grey, "JPEG", {"optimize": True}),
        "restarts.jpg": (image, "JPEG", {"restart_marker_blocks": 2, "comment": b"a comment"}),
        "several.mpo": (image, "MPO", frames),
        "animated.png": (image, "PNG", frames),
        "text.png": (image, "PNG", {"pnginfo": text, "icc_profile": profile, "exif": exif.tobytes()}),
        "clear.png": (clear, "PNG", {}),
        "grey-clear.png": (clear.convert("LA"), "PNG", {}),
        "palette.png": (palette, "PNG", {"transparency": 3}),
        "key.png": (image, "PNG", {"transparency": (220, 40, 60)}),
        "bits.png": (image.convert("1"), "PNG", {}),
        "lossy.webp": (image, "WEBP", {"quality": 60, "exif": exif.tobytes(), "icc_profile": profile}),
        "lossless.webp": (clear, "WEBP", {"lossless": True}),
        "animated.webp": (clear, "WEBP", frames),
        "plain.gif": (palette, "GIF", {"interlace": True}),
        "animated.gif": (palette, "GIF", {**frames, "transparency": 0, "disposal": 2}),
        "plain.bmp": (image, "BMP", {}),
        "palette.bmp": (palette, "BMP", {}),
        "bits.bmp": (image.convert("1"), "BMP", {}),
        "plain.dib": (image, "DIB", {}),
        "plain.ppm": (image, "PPM", {}),
        "plain.pgm": (grey, "PPM", {}),
        "plain.pbm": (image.convert("1"), "PPM", {}),
        "plain.pfm": (grey.convert("F"), "PPM", {}),
        "plain.jp2": (image, "JPEG2000", {}),
        "tiled.jp2": (clear, "JPEG2000", {"tile_size": (32, 32), "num_resolutions": 2}),
        "stream.j2k": (image, "JPEG2000", {"no_jp2": True, "irreversible": True}),
        "plain.avif": (image, "AVIF", {"exif": exif.tobytes()}),
        "clear.avif": (clear, "AVIF", {"quality": 90}),
        "animated.avif": (image, "AVIF", frames),
        "plain.ico": (clear, "ICO", {"sizes": [(32, 32), (16, 16)]}),
        "bitmap.ico": (clear, "ICO", {"sizes": [(32, 32)], "bitmap_format": "bmp"}),
        "plain.icns": (clear.resize((32, 32)), "ICNS", {}),
        "plain.tga": (clear, "TGA", {}),
        "runs.tga": (image, "TGA", {"compression": "tga_rle"}),
        "plain.pcx": (image, "PCX", {}),
        "plain.sgi": (image, "SGI", {}),
        "plain.dds": (clear, "DDS", {}),
        "blocks.dds": (clear, "DDS", {"pixel_format": "DXT5"}),
        "plain.qoi": (clear, "QOI", {}),
        "plain.xbm": (image.convert("1"), "XBM", {}),
        "plain.msp": (image.convert("1"), "MSP", {}),
        "plain.spider": (grey.convert("F"), "SPIDER", {}),
        "plain.blp": (palette, "BLP", {}),
    }
    files = {name: _saved(*how) for name, how in plan.items()}
    deep = np.asarray(grey).astype(">u2") * 257
    files["deep.pgm"] = b"P5 %d %d 65535\n" % image.size + deep.tobytes()
    files["text.ppm"] = b"P3 %d %d 255\n" % image.size + b" ".join(b"%d" % v for v in np.asarray(image).ravel())
    return files


def _saved(image: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _tiffs(rgb: Array) -> dict[str, bytes]:
    image = Image.fromarray(rgb)
    files = {}
    for compression in TIFF_COMPRESSIONS:
        bits = compression in ("group3", "group4", "tiff_ccitt")
        files[f"{compression}.tif"] = _saved(
            image.convert("1") if bits else image, "TIFF", {"compression": compression}
        )
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "LAB", "YCbCr", "1", "F", "I"):
        files[f"mode-{mode}.tif"] = _saved(image.convert("RGB" if mode == "LAB" else mode), "TIFF", {})
    layouts: dict[str, tuple[Array, dict[str, Any]]] = {
        "big-tiled": (rgb, {"bigtiff": True, "tile": (16, 16), "compression": "zlib"}),
        "planes": (rgb.transpose(2, 0, 1), {"planarconfig": "separate", "photometric": "rgb"}),
        "signed": (rgb[..., 0].astype(np.int16), {}),
        "deep-lzw": (rgb.astype(np.uint16) * 257, {"compression": "zlib", "photometric": "rgb", "rowsperstrip": 7}),
        "float": (rgb.astype(np.float32), {"photometric": "rgb"}),
        "several": (np.stack([rgb, rgb]), {"photometric": "rgb"}),
    }
    for name, (pixels, options) in layouts.items():
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, **options)
        files[f"{name}.tif"] = buffer.getvalue()
    return files


def _pngs(rgb: Array) -> dict[str, bytes]:
    """Return PNG files of few bits, with 16 bits and a key, and as OpenCV writes them."""
    deep = rgb.astype(np.uint16) * 257
    key = (b"tRNS", deep[12, 14].astype(">u2").tobytes())
    files = {
        "deep-key.png": png_file(deep, 2, b"", key),
        "deep-grey-key.png": png_file(deep[..., :1], 0, b"", (b"tRNS", key[1][:2])),
        "deep-grey-alpha.png": png_file(deep[..., :2], 4),
        "deep-rgba.png": png_file(np.dstack([deep, deep[..., 0]]), 6),
    }
    for bits in (1, 2, 4):
        buffer = io.BytesIO()
        Image.fromarray(rgb).quantize(1 << bits).save(buffer, "PNG", bits=bits)
        files[f"palette-{bits}.png"] = buffer.getvalue()
    for name, pixels in (("opencv.png", rgb), ("opencv.jpg", rgb), ("opencv.webp", rgb), ("opencv.jp2", rgb)):
        files[name] = bytes(cv2.imencode(Path(name).suffix, np.ascontiguousarray(pixels[..., ::-1]))[1])
    return files
