"""Pictures that are read and written again: orientation, depth, and the tags of cameras."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ovseg_batch.io.images import Limits, open_image
from ovseg_batch.io.pictures import Encoding, Format, Picture, encode_picture, read_picture


def camera_exif() -> Image.Exif:
    """A block as cameras write it: tags, and directories of the camera and of the place."""
    exif = Image.Exif()
    exif.update({271: "Maker", 282: 72.0, 306: "2026:11:28 05:00:00"})
    exif.get_ifd(0x8769).update({34855: 100, 33434: 0.01, 36867: "2026:11:28 05:00:00"})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 0.0)})
    return exif


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "tiff"])
def test_the_tags_of_a_camera_do_not_keep_a_picture_from_being_written(form: Format) -> None:
    """libtiff takes no directories in a tag, and some tags of files are out of order."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    odd = Image.Exif()
    odd.update({282: 1e-30, 40000: "unknown", 270: "\u732b", 33432: b"\x00\xff"})
    for block in (camera_exif().tobytes(), odd.tobytes(), b"Exif\x00\x00garbage"):
        content = encode_picture(Picture(pixels, exif=block), Encoding(form))
        with Image.open(io.BytesIO(content)) as image:
            written = np.asarray(image)
            assert written.shape == pixels.shape and (form == "jpeg" or np.array_equal(written, pixels))
    with Image.open(io.BytesIO(encode_picture(Picture(pixels, exif=camera_exif().tobytes()), Encoding(form)))) as image:
        assert image.getexif()[271] == "Maker"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_of_16_bits_are_turned_as_those_of_8(tmp_path: Path, kind: str, orientation: int) -> None:
    grey = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30) * 100
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"x.{kind.lower()}"
    Image.fromarray(grey).save(path, kind, exif=exif)
    with Image.open(io.BytesIO(path.read_bytes())) as image:  # Pillow maps a file, and then turns a TIFF wrongly
        image.load()  # which turns a TIFF
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = read_picture(open_image(str(path), Limits(10**6, 10**7)), path)
    assert found.pixels.dtype == np.uint16 and np.array_equal(found.pixels[..., 0], expected)


def test_a_broken_exif_block_costs_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    for block in (b"garbage!", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"MM\x00*\x00\x00\x00\x08\xff\xff"):
        Image.fromarray(pixels).save(tmp_path / "x.png", exif=block)
        found = read_picture(open_image(str(tmp_path / "x.png"), Limits(10**6, 10**7)), "x.png")
        assert np.array_equal(found.pixels, pixels)
