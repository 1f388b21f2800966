"""Pictures in every guise that files can have, given masks, and what the edit stage makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms

from ovseg_batch.config import load_config
from ovseg_batch.io import rle
from ovseg_batch.io.images import Limits, open_image
from ovseg_batch.io.pictures import Picture, read_picture
from ovseg_batch.methods.blending import widened
from ovseg_batch.settings import Config
from ovseg_batch.stages.edit import EditStage
from ovseg_batch.types import ImageRow, RowResult

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


class GivenMasks:
    """An upstream whose masks are known."""

    def __init__(self, masks: Sequence[Masks]) -> None:
        self._masks = masks

    def failure(self, row: int) -> str | None:
        return None

    def values(self, row: int) -> dict[str, Any]:
        masks = self._masks[row]
        height, width = masks[0][1].shape
        lines = [{"category": label, "rle": rle.encode(mask), "score": 0.9} for label, mask in masks if mask.any()]
        return {"height": height, "width": width, "annotations": lines}


def settings(mode: str, *overrides: str) -> Config:
    """The labels are cat and sky."""
    return load_config("demo", overrides, {"labels": "cat, sky", "edit.mode": mode}, environment={})


def edited(config: Config, files: Sequence[Path], masks: Sequence[Masks]) -> list[RowResult]:
    """What the stage says of image files, in order."""
    stage = EditStage(config, "refine")
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


def write_guises(folder: Path, picture: Image.Image, stem: str = "") -> dict[str, Path]:
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
