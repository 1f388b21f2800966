"""Pictures in every variant of image file, with known masks, and the results of the edit stage for them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from ovseg_batch.config import load_config
from ovseg_batch.io import rle
from ovseg_batch.io.images import open_image, upright
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.pictures import Picture, read_picture
from ovseg_batch.methods.blending import widened
from ovseg_batch.settings import Config
from ovseg_batch.stages.edit.stage import EditStage
from ovseg_batch.stages.registry import resolve
from ovseg_batch.types import Annotation, ImageRow, RowResult

Array = np.ndarray[Any, Any]
Masks = list[tuple[str, Array]]  # (label, (H, W) bool)

LIMITS = Limits(200_000_000, 1 << 30)

#: Every mode that changes a picture in place, with settings that make it quick.
IN_PLACE: list[tuple[str, tuple[str, ...]]] = [
    ("erase", ()),
    ("fill", ("edit.fill.kind=blur", "edit.fill.blur=0.3")),
    ("fill", ("edit.fill.colour=red",)),
    ("fill", ("edit.fill.kind=gradient",)),
    ("fill", ("edit.shape=box",)),
    ("remove", ("inpaint.steps=2", "inpaint.guidance=1")),
    ("replace", ("inpaint.steps=2", "edit.prompt=a ball", "edit.shape=box")),
    ("style", ("inpaint.steps=4", "edit.prompt=snow", "edit.together=true")),
]


def annotation(label: str, mask: Array, confidence: float) -> Annotation:
    """Return a mask as an annotation whose score is its confidence."""
    counts = rle.encode(mask)
    box, area = tuple(rle.bounding_box(counts, *mask.shape)), rle.area(counts, *mask.shape)
    return Annotation(label, confidence, box, area, counts, "sam", confidence, 1.0)


class GivenMasks:
    """An upstream whose masks are known."""

    def __init__(self, masks: Sequence[Masks]) -> None:
        self._masks = masks

    def failure(self, row: int) -> str | None:
        return None

    def values(self, row: int) -> dict[str, Any]:
        masks = self._masks[row]
        height, width = masks[0][1].shape
        drawn = [annotation(label, mask, 0.9) for label, mask in masks if mask.any()]
        return {"height": height, "width": width, "annotations": drawn}


def settings(mode: str, *overrides: str) -> Config:
    """The labels are cat and sky."""
    return load_config("demo", overrides, {"labels": "cat, sky", "edit.mode": mode}, environment={})


def edited(config: Config, files: Sequence[Path], masks: Sequence[Masks]) -> list[RowResult]:
    """Return the results of the stage for image files, in order."""
    stage = EditStage(resolve(config))
    stage.setup("cpu")
    rows = [ImageRow(k, file.name, file.name, str(file)) for k, file in enumerate(files)]
    upstream: Any = {"refine": GivenMasks(masks)}
    return sorted(stage.process(rows, upstream), key=lambda result: result.row)


def decoded(path: Path) -> Picture:
    with open_image(str(path), LIMITS) as image:
        return read_picture(image, path)


def pixels_of(content: bytes) -> Array:
    """Every channel of an image file, in its own depth, RGB(A)."""
    whole = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if whole is None:
        raise ValueError("no image")
    return whole if whole.ndim == 2 else whole[..., [2, 1, 0, 3][: whole.shape[2]]]


def disc(height: int, width: int, y: float = 0.5, x: float = 0.5, radius: float = 0.25) -> Array:
    """A mask; centre and radius as shares of the picture."""
    ys, xs = np.mgrid[:height, :width]
    return np.asarray(np.hypot(ys - y * height, xs - x * width) < radius * min(height, width))


def allowed(masks: Sequence[Array], config: Config) -> Array:
    """Where an edit of these masks may change a picture, computed another way than the stage does."""
    edit = config.edit
    region = np.zeros(masks[0].shape, bool)
    for mask in masks:
        if edit.shape == "mask":
            region |= widened(mask, edit.dilation)
        elif mask.any():
            ys, xs = np.nonzero(mask)
            top, left = max(0, ys.min() - edit.dilation), max(0, xs.min() - edit.dilation)
            region[top : ys.max() + 1 + edit.dilation, left : xs.max() + 1 + edit.dilation] = True
    return region


def write_variants(folder: Path, picture: Image.Image, stem: str = "") -> dict[str, Path]:
    """One picture turned by EXIF, in CMYK, grey, with a palette, transparent, with 16 bits, and in every format."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = picture.getexif()
    exif[274], exif[0x010E] = 6, "a picture"
    picture.save(folder / f"{stem}turned.jpg", exif=exif, quality=90)
    picture.save(folder / f"{stem}plain.png", icc_profile=profile, exif=exif.tobytes())
    picture.convert("CMYK").save(folder / f"{stem}cmyk.jpg")
    picture.convert("L").save(folder / f"{stem}grey.png")
    picture.quantize(32).save(folder / f"{stem}palette.png")
    clear = picture.convert("RGBA")
    ramp = np.linspace(0, 255, picture.width).astype(np.uint8)
    clear.putalpha(Image.fromarray(np.tile(ramp, (picture.height, 1))))
    clear.save(folder / f"{stem}clear.png")
    picture.save(folder / f"{stem}lossy.webp")
    picture.save(folder / f"{stem}plain.tiff")
    deep = np.asarray(picture).astype(np.uint16) * 251 + 77
    cv2.imwrite(str(folder / f"{stem}deep.png"), np.ascontiguousarray(deep[..., ::-1]))
    cv2.imwrite(str(folder / f"{stem}deep.tiff"), np.ascontiguousarray(deep[..., ::-1]))
    Image.fromarray(np.ascontiguousarray(deep[..., 0])).save(folder / f"{stem}deepgrey.png")
    return {path.name: path for path in sorted(folder.glob(f"{stem}*"))}


STORED = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # the turn that undoes each orientation


def scene_files(rgb: Array, orientation: int = 1) -> dict[str, bytes]:
    """One opaque scene, (H, W, 3) uint8, in valid files of every layout; lossless but for `.jpg`."""
    rgb = upright(rgb, STORED.get(orientation, 1))
    deep = rgb.astype(np.uint16) * 257
    more, full = deep[..., :1], np.full_like(deep[..., :1], 65535)
    half = np.full_like(more, 30000)
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "Maker"
    block, odd = exif.tobytes(), b"II*\0\x08\0\0\0\2\0" + struct.pack("<HHI4s", 282, 2, 4, b"72\0\0")
    odd = b"Exif\0\0" + odd + struct.pack("<HHII", 274, 3, 1, orientation) + bytes(4)
    text = PngImagePlugin.PngInfo()
    text.add_text("XML", "x" * (2 << 20), zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(rgb)
    files = {
        "a.jpg": _saved(image, "JPEG", exif=block, quality=97, subsampling=0),
        "odd-exif.jpg": _saved(image, "JPEG", exif=odd, quality=97, subsampling=0),
        "a.webp": _saved(image, "WEBP", exif=block, lossless=True),
        "a.png": _saved(image, "PNG", exif=block, icc_profile=profile),
        "text.png": _saved(image, "PNG", exif=block, pnginfo=text),
        "deep.png": png_file(deep, 2, block),
        "deep-alpha.png": png_file(np.dstack([deep, full]), 6, block),
        "big-exif.png": _saved(image, "PNG", exif=_padded(orientation)),
    }
    for name, order in (("little", "<"), ("big", ">")):
        layouts: dict[str, tuple[Array, dict[str, Any]]] = {
            "deep": (deep, {}),
            "deep-profile": (deep, {"iccprofile": profile}),
            "deflated": (deep, {"compression": "zlib", "predictor": True}),
            "tiled": (deep, {"tile": (16, 16)}),
            "tiled-deflated": (deep, {"tile": (16, 16), "compression": "zlib", "predictor": True}),
            "strips": (deep, {"rowsperstrip": 3}),
            "infrared": (np.dstack([deep, half]), {"extrasamples": [0]}),
            "three-more": (np.dstack([deep, half, more, half]), {"extrasamples": [0, 0, 0]}),
            "alpha": (np.dstack([deep, full]), {"extrasamples": [2]}),
            "alpha-behind": (np.dstack([deep, half, full]), {"extrasamples": [0, 2]}),
            "multiplied": (np.dstack([deep, full]), {"extrasamples": [1]}),
            "planes": (deep.transpose(2, 0, 1), {"planarconfig": "separate"}),
            "planes-alpha": (
                np.dstack([deep, full]).transpose(2, 0, 1),
                {"planarconfig": "separate", "extrasamples": [2], "compression": "zlib", "predictor": True},
            ),
            "eight": (rgb, {}),
            "eight-infrared": (np.dstack([rgb, rgb[..., 0]]), {"extrasamples": [0]}),
        }
        for layout, (pixels, options) in layouts.items():
            files[f"{layout}-{name}.tif"] = tiff_file(
                pixels, orientation, byteorder=order, photometric="rgb", **options
            )
    files["large.tif"] = tiff_file(deep, orientation, photometric="rgb", bigtiff=True)
    pages: tuple[tuple[str, Array], ...] = (("page-deep.tif", deep), ("page-eight.tif", rgb))
    for name, pixels in pages:
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as file:
            file.write(deep[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
            file.write(pixels, photometric="rgb", metadata=None, extratags=[(274, 3, 1, orientation, True)])
        files[name] = buffer.getvalue()
    return files


def grey_files(grey: Array) -> dict[str, bytes]:
    """One scene of grey levels, (H, W) uint8, in files of every layout."""
    deep = grey.astype(np.uint16) * 257
    full = np.full_like(deep, 65535)
    header = b"P5 %d %d 65535\n" % grey.shape[::-1]
    files = {
        "eight.png": _saved(Image.fromarray(grey), "PNG"),
        "deep.png": png_file(deep, 0),
        "deep.pgm": header + deep.astype(">u2").tobytes(),
    }
    for name, order in (("little", "<"), ("big", ">")):
        layouts: dict[str, tuple[Array, dict[str, Any]]] = {
            "black-is-zero": (deep, {"photometric": "minisblack"}),
            "white-is-zero": (65535 - deep, {"photometric": "miniswhite"}),
            "white-is-zero-eight": (255 - grey, {"photometric": "miniswhite"}),
        }
        for kind in (0, 1, 2):
            options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [kind]}
            layouts[f"extra-{kind}"] = np.dstack([deep, full]), options
        for layout, (pixels, options) in layouts.items():
            files[f"{layout}-{name}.tif"] = tiff_file(pixels, 1, byteorder=order, **options)
    return files


def tiff_file(pixels: Array, orientation: int = 1, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, extratags=[(274, 3, 1, orientation, True)], **options)
    return buffer.getvalue()


def png_file(pixels: Array, colour: int, exif: bytes = b"", *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the colour type, with chunks (name, content) of your own before the pixels."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if pixels.dtype == np.uint16 else np.uint8).reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8 * rows.dtype.itemsize, colour, 0, 0, 0)
    own = [(b"eXIf", exif.removeprefix(b"Exif\0\0"))] if exif else []
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    whole = [(b"IHDR", head), *chunks, *own, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in whole
    )


def _padded(orientation: int) -> bytes:
    """EXIF that no JPEG can hold."""
    exif = Image.Exif()
    exif[274], exif[270] = orientation, "x" * 70_000
    return exif.tobytes()


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
