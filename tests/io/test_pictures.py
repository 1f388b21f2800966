"""Pictures that are read and written again: orientation, depth, and the tags of cameras."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io.images import LONGEST, open_image, read_image, upright_size
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.pictures import Encoding, Format, Picture, encode_picture, left_out, read_picture
from tests.harness.image_variants import grey_files, png_file, scene_files, tiff_file

LIMITS = Limits(10**8, 10**8)


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


def seen_and_edited(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What the models see of a file, and the 8 bits of colours and alpha that an edit starts from."""
    size = upright_size(open_image(str(path), LIMITS), path)
    seen = read_image(path, LIMITS)
    picture = read_picture(open_image(str(path), LIMITS), path)
    assert size == seen.shape[:2] == picture.pixels.shape[:2]
    parts = [part if part is None or part.dtype == np.uint8 else part >> 8 for part in (picture.pixels, picture.alpha)]
    assert parts[0] is not None
    return seen, parts[0], parts[1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_one_scene_is_one_picture_in_every_file(tmp_path: Path, orientation: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (24, 36, 3)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    files = scene_files(rgb, orientation)
    assert len(files) > 40
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        seen, edited, alpha = seen_and_edited(tmp_path / name)
        allowed = 40 if name.endswith("jpg") else 0
        for found in (seen, edited):
            assert found.shape == rgb.shape, name
            assert np.abs(found.astype(int) - rgb).max() <= allowed, name
        assert alpha is None or (alpha == 255).all(), name


def test_one_scene_of_grey_levels_is_one_picture_in_every_file(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (24, 36)).astype(np.uint8)
    for name, content in grey_files(grey).items():
        (tmp_path / name).write_bytes(content)
        seen, edited, alpha = seen_and_edited(tmp_path / name)
        for found in (seen, edited):
            assert np.array_equal(found, np.dstack([grey] * 3)), name
        assert alpha is None or (alpha == 255).all(), name


def test_the_depth_decides_the_grey_levels_and_not_what_they_are(tmp_path: Path) -> None:
    dark = np.full((8, 9), 200, np.uint16)  # all below 256
    files = {f"{order}.tif": tiff_file(dark, byteorder=order, photometric="minisblack") for order in "<>"}
    files |= {"dark.png": png_file(dark, 0), "dark.pgm": b"P5 9 8 65535\n" + dark.astype(">u2").tobytes()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert read_image(tmp_path / name, LIMITS).max() == 0, name


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_without_an_agreed_white_are_refused(tmp_path: Path, kind: str, channels: int) -> None:
    for order in "<>":
        pixels = np.ones((8, 9, channels), kind).squeeze()
        (tmp_path / "x.tif").write_bytes(
            tiff_file(pixels, byteorder=order, photometric="rgb" if channels == 3 else "minisblack")
        )
        for read in (read_image, lambda path, limits: read_picture(open_image(str(path), limits), path)):
            with pytest.raises(RowError, match="Save it") as caught:
                read(tmp_path / "x.tif", LIMITS)
            assert caught.value.code is FailureCode.BAD_IMAGE


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("colour", [0, 2])
def test_a_transparent_colour_lies_on_white(tmp_path: Path, deep: bool, colour: int) -> None:
    scale = 257 if deep else 1
    pixels = np.full((4, 5, 3)[: 3 if colour else 2], 7 * scale, np.uint16 if deep else np.uint8)
    pixels[0, 1] = 7 * scale + 1  # another colour, though its first 8 bits may be the same
    key = (b"tRNS", struct.pack(f">{3 if colour else 1}H", *[7 * scale] * (3 if colour else 1)))
    (tmp_path / "x.png").write_bytes(png_file(pixels, colour, b"", key))
    seen, _, alpha = seen_and_edited(tmp_path / "x.png")
    assert alpha is not None and alpha[0, :2].tolist() == [0, 255]
    assert seen[0, :2].tolist() == [[255] * 3, [7 + (not deep)] * 3]


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_multiplied_or_not(tmp_path: Path, kind: int, channels: int) -> None:
    """The tag ExtraSamples names the kind; the picture is the same."""
    rng = np.random.default_rng(0)
    colours, alpha = rng.integers(0, 65536, (8, 9, channels)), rng.integers(20000, 65536, (8, 9, 1))
    stored = np.rint(colours * alpha / 65535) if kind == 1 else colours
    pixels = np.dstack([stored, alpha]).astype(np.uint16)
    kept_as: dict[str, Any] = {"photometric": "rgb" if channels == 3 else "minisblack", "planarconfig": "contig"}
    (tmp_path / "x.tif").write_bytes(tiff_file(pixels, **kept_as, extrasamples=[kind]))
    found = read_picture(open_image(str(tmp_path / "x.tif"), LIMITS), "x.tif")
    assert found.alpha is not None and np.array_equal(found.alpha, alpha[..., 0])
    assert np.abs(found.pixels.astype(int) - colours).max() <= 2


def icc(space: bytes = b"RGB ") -> bytes:
    block = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    block[16:20] = space
    return bytes(block)


@pytest.mark.parametrize("form", ["png", "tiff", "jpeg", "webp"])
@pytest.mark.parametrize("channels", [0, 3, 4])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_profile_and_exif_go_into_every_file_that_can_hold_them(
    tmp_path: Path, form: Format, channels: int, depth: type
) -> None:
    if (depth is np.uint16 and form in ("jpeg", "webp")) or (channels == 4 and form == "jpeg"):
        return
    whole: np.ndarray[Any, Any] = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(depth) * (
        np.iinfo(depth).max // 255
    )
    pixels = whole[..., 0] if channels == 0 else whole[..., :3]
    alpha = whole[..., 3].copy() if channels == 4 else None
    own, other = (b"GRAY", b"RGB ") if channels == 0 else (b"RGB ", b"GRAY")
    if form == "webp":
        own = b"RGB "
    encoding = Encoding(form)
    picture = Picture(np.ascontiguousarray(pixels), alpha, icc(own), camera_exif().tobytes())
    written = encode_picture(picture, encoding)
    with Image.open(io.BytesIO(written)) as image:
        exif = image.getexif()
        assert exif[271] == "Maker" and exif.get_ifd(0x8769)[34855] == 100 and exif.get_ifd(0x8825)[1] == "N"
        assert form == "webp" or image.info["icc_profile"] == icc(own)
    wrong = Picture(picture.pixels, alpha, icc(other), b"")
    if form != "webp":
        with Image.open(io.BytesIO(encode_picture(wrong, encoding))) as image:
            assert "icc_profile" not in image.info
        assert len(left_out(wrong, encoding)) == 1 and not left_out(picture, encoding)
    if form in ("png", "tiff") and channels:
        (tmp_path / "x").write_bytes(written)
        again = read_picture(open_image(str(tmp_path / "x"), LIMITS), "x")
        assert np.array_equal(again.pixels, pixels) and again.icc == icc(own)
        if alpha is None or again.alpha is None:
            assert again.alpha is alpha
        else:
            assert np.array_equal(again.alpha, alpha)


def test_the_limits_of_formats_cost_a_block_or_a_row() -> None:
    pixels, exif = np.zeros((20, 30, 3), np.uint8), Image.Exif()
    exif[270] = "x" * 70_000
    large = Picture(pixels, None, icc() + bytes(255 * 65_519), exif.tobytes())
    kept_blocks: dict[Format, int] = {"jpeg": 0, "png": 2, "tiff": 2, "webp": 2}
    for form, kept in kept_blocks.items():
        with Image.open(io.BytesIO(encode_picture(large, Encoding(form)))) as image:
            assert ("icc_profile" in image.info) + (270 in image.getexif()) == kept, form
        assert len(left_out(large, Encoding(form))) == 2 - kept
    too_long: dict[Format, int] = {"webp": 16_384, "jpeg": 65_501}
    for form, side in too_long.items():
        with pytest.raises(RowError, match=rf"{form} holds at most \d+ a side") as caught:
            encode_picture(Picture(np.zeros((1, side, 3), np.uint8)), Encoding(form))
        assert caught.value.code is FailureCode.UNWRITABLE
        assert encode_picture(Picture(np.zeros((1, side - 1, 3), np.uint8)), Encoding(form))


def test_a_strip_is_refused_before_a_stage_asks_for_its_memory(tmp_path: Path) -> None:
    for width, height in ((1, LONGEST + 1), (LONGEST * 2 + 1, 2)):
        Image.new("L", (width, height)).save(tmp_path / "x.png")
        with pytest.raises(RowError, match="times as long") as caught:
            open_image(str(tmp_path / "x.png"), LIMITS)
        assert caught.value.code is FailureCode.TOO_LARGE


def test_a_page_that_is_a_thumbnail_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    """Raw files of cameras hold the picture in a directory of its own: the thumbnail is not taken for it."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    for type_tag, value in ((254, 1), (255, 2)):
        for name, content in (("alone", {}), ("raw", {330: 8})):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[type_tag] = value
            for tag, number in content.items():
                tags[tag] = number
            Image.fromarray(pixels).save(tmp_path / f"{name}.tif", tiffinfo=tags)
        assert np.array_equal(read_image(tmp_path / "alone.tif", LIMITS), pixels)
        with pytest.raises(RowError, match="thumbnail alone"):
            read_image(tmp_path / "raw.tif", LIMITS)
