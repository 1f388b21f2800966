"""The edit stage: what each mode makes, that no bit outside changes, and what cannot be edited."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from ovseg_batch.config import load_config
from ovseg_batch.errors import OvsegError, RowError
from ovseg_batch.io.pictures import Encoding, Picture, encode_picture, output_name
from ovseg_batch.methods.blending import widened
from ovseg_batch.stages.edit.stage import EditStage
from ovseg_batch.stages.registry import resolve
from tests.conftest import Command, run_arguments
from tests.harness.image_variants import IN_PLACE, allowed, decoded, disc, edited, pixels_of, settings

Array = np.ndarray[Any, Any]


# --- names -----------------------------------------------------------------------------------------------------------


def test_no_two_images_have_one_output() -> None:
    stems = ["a", "b/a", "a.jpg", "a.png", "a.jpg.png", "a.png.png", "a.JPG", "a.PNG", "a.file", "a.file.png", "a.tif"]
    names = [*stems, *(f"{stem}.webp" for stem in stems), *(f"{stem}.jpeg" for stem in stems)]
    outputs = [output_name(name, form) for name in names for form in ("png",)]
    assert len(set(outputs)) == len(names)
    for form in ("png", "webp", "jpeg", "tiff"):
        assert len({output_name(name, form) for name in names}) == len(names)
    assert output_name("photos/cat.jpg", "png") == "photos/cat.jpg.png"
    assert output_name("photos/cat.png", "png") == "photos/cat.png"


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow("an edit changes no pixel outside its mask")
@pytest.mark.parametrize(("mode", "overrides"), IN_PLACE, ids=lambda value: value if isinstance(value, str) else None)
def test_not_a_bit_changes_outside(mode: str, overrides: tuple[str, ...], variants: dict[str, Path]) -> None:
    """Turned by EXIF, CMYK, grey, palette, transparent, 16 bits: outside the widened masks all is as it was."""
    config = settings(mode, "edit.drop=cat", *overrides)
    pictures = [decoded(path) for path in variants.values()]
    masks = []
    for picture in pictures:
        h, w = picture.pixels.shape[:2]
        masks.append(
            [("cat", disc(h, w, 0.4, 0.3, 0.2)), ("cat", disc(h, w, 0.9, 0.95, 0.15)), ("sky", disc(h, w, 0.1))]
        )
    for result, picture, chosen in zip(edited(config, list(variants.values()), masks), pictures, masks, strict=True):
        assert result.ok, result.message
        [(name, content)] = result.files.items()
        made = pixels_of(content)
        assert made.dtype == picture.pixels.dtype, name
        region = allowed([mask for _, mask in chosen[:2]], config)
        assert np.array_equal(made[..., :3][~region], picture.pixels[~region]), name
        assert (made[..., :3][region] != picture.pixels[region]).any(), name
        if picture.alpha is not None:
            assert np.array_equal(made[..., 3], picture.alpha)


@pytest.mark.parametrize("overrides", [(), ("edit.alpha.soft=false",), ("edit.alpha.decontaminate=false",)])
def test_a_cutout_keeps_its_inside_and_shows_nothing_outside(
    overrides: tuple[str, ...], variants: dict[str, Path]
) -> None:
    config = settings("cutout", "edit.keep=cat", *overrides)
    pictures = [decoded(path) for path in variants.values()]
    masks = [[("cat", disc(*picture.pixels.shape[:2]))] for picture in pictures]
    for result, picture, chosen in zip(edited(config, list(variants.values()), masks), pictures, masks, strict=True):
        [(name, content)] = result.files.items()
        made, mask = pixels_of(content), chosen[0][1]
        top = np.iinfo(made.dtype).max
        inner, outer = ~widened(~mask, 3), ~widened(mask, 3)
        assert np.array_equal(made[..., :3][inner & (made[..., 3] > 0)], picture.pixels[inner & (made[..., 3] > 0)]), (
            name
        )
        assert not made[outer].any(), name  # neither alpha nor colour
        if picture.alpha is None:
            assert (made[..., 3][inner] == top).all()
        else:
            assert (made[..., 3] <= picture.alpha).all()


def test_profile_and_exif_are_kept_or_not(variants: dict[str, Path]) -> None:
    mask = [("cat", disc(240, 320))]
    for keep, wanted in (("keep", (True, True)), ("colour", (True, False)), ("none", (False, False))):
        config = settings("cutout", f"edit.metadata={keep}")
        [result] = edited(config, [variants["plain.png"]], [[("cat", disc(320, 240))]])
        with Image.open(io.BytesIO(next(iter(result.files.values())))) as made:
            assert (bool(made.info.get("icc_profile")), 0x010E in made.getexif()) == wanted
            assert 274 not in made.getexif()  # turned already
    [result] = edited(settings("fill", "edit.format=jpeg"), [variants["grey.png"]], [mask])
    assert list(result.files) == ["grey.png.jpg"]


def test_the_layout_of_a_tiff_is_not_kept(tmp_path: Path) -> None:
    """Its tags describe how the old pixels lie in the old file; libtiff would take them for the new one's."""
    Image.fromarray(photographs.astronaut()).save(tmp_path / "a.tiff", compression="tiff_lzw", description="kept")
    with Image.open(tmp_path / "a.tiff") as image:
        assert {258, 270, 273, 278} < set(image.getexif())
    exif = Image.Exif()
    exif.load(decoded(tmp_path / "a.tiff").exif)
    assert dict(exif) == {270: "kept"}


def test_the_thumbnail_of_the_old_picture_goes(tmp_path: Path) -> None:
    """EXIF with a second directory, in which cameras put a small JPEG."""
    small = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(small, "JPEG")
    thumbnail = small.getvalue()
    first = struct.pack("<HHHI4sI", 1, 0x010E, 2, 4, b"old\0", 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + thumbnail
    Image.fromarray(photographs.astronaut()).save(tmp_path / "camera.jpg", exif=exif)
    assert thumbnail in (tmp_path / "camera.jpg").read_bytes()
    for form in ("png", "jpeg", "webp"):
        [result] = edited(
            settings("fill", f"edit.format={form}"), [tmp_path / "camera.jpg"], [[("cat", disc(512, 512))]]
        )
        [content] = result.files.values()
        with Image.open(io.BytesIO(content)) as made:
            assert made.getexif()[0x010E] == "old"
            assert thumbnail not in made.info["exif"] and thumbnail not in content


def test_every_format_is_written(variants: dict[str, Path]) -> None:
    for form, suffix in (("png", "png"), ("webp", "webp"), ("tiff", "tif"), ("jpeg", "jpg")):
        for name in ("plain.png", "clear.png", "deep.png"):
            path = variants[name]
            h, w = decoded(path).pixels.shape[:2]
            [result] = edited(settings("fill", f"edit.format={form}"), [path], [[("cat", disc(h, w))]])
            assert result.ok, result.message
            [(output, content)] = result.files.items()
            assert output.endswith(suffix)
            with Image.open(io.BytesIO(content)) as made:
                assert made.size == (w, h)
                assert made.format == form.upper()


def test_webp_and_tiff_lose_nothing() -> None:
    pixels = photographs.astronaut()[:100, :130]
    alpha = np.ascontiguousarray(pixels[..., 0])
    for form in ("png", "webp", "tiff"):
        content = encode_picture(Picture(pixels, alpha), Encoding(form))
        with Image.open(io.BytesIO(content)) as made:
            assert np.array_equal(np.asarray(made), np.dstack([pixels, alpha])), form
    with pytest.raises(RowError, match="transparency"):
        encode_picture(Picture(pixels, alpha), Encoding("jpeg"))


def test_crops_are_tight_padded_square_and_for_each_instance(variants: dict[str, Path]) -> None:
    h, w = 240, 320
    mask = np.zeros((h, w), bool)
    mask[100:140, 200:300] = True
    other = np.zeros((h, w), bool)
    other[10:20, 10:20] = True
    path = variants["palette.png"]
    original = decoded(path).pixels

    def crop(*overrides: str) -> dict[str, Array]:
        [result] = edited(settings("crop", *overrides), [path], [[("cat", mask), ("sky", other)]])
        return {name: pixels_of(content) for name, content in result.files.items()}

    assert np.array_equal(crop("edit.keep=cat")["palette.png"], original[100:140, 200:300])
    assert crop("edit.keep=cat", "edit.crop.margin=0.1")["palette.png"].shape == (60, 120, 3)
    assert crop("edit.keep=cat", "edit.crop.square=true")["palette.png"].shape == (100, 100, 3)
    apart = crop("edit.apart=true")
    assert {name: part.shape[:2] for name, part in apart.items()} == {
        "palette.png/001-cat.png": (40, 100),
        "palette.png/002-sky.png": (10, 10),
    }


def test_masks_alone(variants: dict[str, Path]) -> None:
    mask = disc(240, 320)
    [kept] = edited(
        settings("mask", "edit.alpha.soft=false", "edit.keep=cat"), [variants["grey.png"]], [[("cat", mask)]]
    )
    [dropped] = edited(
        settings("mask", "edit.alpha.soft=false", "edit.drop=cat"), [variants["grey.png"]], [[("cat", mask)]]
    )
    assert np.array_equal(pixels_of(kept.files["grey.png"]), mask * np.uint8(255))
    assert np.array_equal(pixels_of(dropped.files["grey.png"]), ~mask * np.uint8(255))


def test_another_picture_behind(variants: dict[str, Path]) -> None:
    config = settings("fill", f"edit.fill.image={variants['lossy.webp']}", "edit.fill.kind=image", "edit.keep=cat")
    [result] = edited(config, [variants["deep.png"]], [[("cat", disc(240, 320))]])
    made, behind = pixels_of(result.files["deep.png"]), decoded(variants["lossy.webp"]).pixels
    outside = ~widened(disc(240, 320), 4)
    assert np.array_equal(made[outside], behind[outside].astype(np.uint16) * 257)


# --- what cannot be edited -------------------------------------------------------------------------------------------


def test_images_without_a_mask(variants: dict[str, Path]) -> None:
    nothing = [[("sky", disc(240, 320))]]
    for mode in ("cutout", "erase", "remove"):
        for choice, files in (("copy", 1), ("skip", 0)):
            way = "edit.keep=cat" if mode == "cutout" else "edit.drop=cat"
            config = settings(mode, way, f"edit.on_empty={choice}")
            [result] = edited(config, [variants["grey.png"]], nothing)
            assert result.ok and len(result.files) == files
            assert result.values["unchanged"] == "no_mask"
            for content in result.files.values():
                assert np.array_equal(pixels_of(content), decoded(variants["grey.png"]).pixels)
        config = settings(mode, "edit.on_empty=fail", "edit.keep=cat" if mode == "cutout" else "edit.drop=cat")
        [result] = edited(config, [variants["grey.png"]], nothing)
        assert (result.code, "cat" in result.message) == ("no_edit", True)


@pytest.mark.parametrize(
    ("mode", "way", "files"),
    [
        ("cutout", "edit.keep=cat", 0),
        ("fill", "edit.keep=cat", 1),
        ("crop", "edit.keep=cat", 0),
        ("mask", "edit.keep=cat", 1),
        ("cutout", "edit.drop=cat", 1),
        ("fill", "edit.drop=cat", 1),
        ("mask", "edit.drop=cat", 1),
        ("erase", "edit.drop=cat", 1),
        ("remove", "edit.drop=cat", 1),
    ],
)
def test_an_image_without_what_is_to_be_kept_gets_no_file(
    mode: str, way: str, files: int, variants: dict[str, Path]
) -> None:
    [result] = edited(settings(mode, way), [variants["grey.png"]], [[("sky", disc(240, 320))]])
    assert result.ok and len(result.files) == files
    if (mode, way) == ("fill", "edit.keep=cat"):
        assert (pixels_of(result.files["grey.png"]) == 255).all(), "the filling alone, white"


def test_nothing_left_to_crop_fails_the_row(variants: dict[str, Path]) -> None:
    config = settings("crop", "edit.drop=[cat]")
    [result] = edited(config, [variants["plain.png"]], [[("cat", np.ones((320, 240), bool))]])
    assert result.code == "no_edit" and "nothing is left to crop" in result.message


def test_blocks_that_a_file_cannot_hold_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[270] = "x" * 70_000
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png", exif=exif)
    config = settings("fill", "edit.format=jpeg")
    [result] = edited(config, [tmp_path / "a.png"], [[("cat", disc(30, 40))]])
    assert result.ok and "1 image had EXIF of more than 65533 bytes" in caplog.text and "(a.png)" in caplog.text


def test_a_mask_over_everything_fails_the_row(variants: dict[str, Path]) -> None:
    everything = [[("cat", np.ones((240, 320), bool))]]
    for mode in ("erase", "remove"):
        [result] = edited(settings(mode, "edit.drop=cat"), [variants["grey.png"]], everything)
        assert result.code == "no_edit" and "whole image" in result.message
    [result] = edited(settings("cutout", "edit.keep=cat"), [variants["grey.png"]], everything)
    assert result.ok


@pytest.mark.parametrize("mode", ["cutout", "fill", "mask", "crop"])
def test_an_edit_that_keeps_the_whole_image_is_marked(mode: str, variants: dict[str, Path]) -> None:
    whole, part = ("cat", np.ones((240, 320), bool)), ("cat", disc(240, 320))
    picture = decoded(variants["grey.png"]).pixels
    for masks, unchanged in (([whole], True), ([part], False), ([part, whole], True)):
        [result] = edited(settings(mode, "edit.keep=cat"), [variants["grey.png"]], [masks])
        [content] = result.files.values()
        made = pixels_of(content)
        shown = made[..., 3] if mode == "cutout" else made
        wanted = picture if mode in ("fill", "crop") else np.full((240, 320), 255)
        assert np.array_equal(shown, wanted) is unchanged
        assert result.values["unchanged"] == ("whole_image" if unchanged else None)


def test_edits_of_what_goes_and_files_for_every_mask_are_marked(variants: dict[str, Path]) -> None:
    whole, part = ("cat", np.ones((240, 320), bool)), ("cat", disc(240, 320))
    corners = np.zeros((240, 320), bool)
    corners[0, 0] = corners[-1, -1] = True
    for mode, overrides, masks, unchanged in (
        ("cutout", ("edit.drop=cat",), [whole], None),  # everything is removed
        ("mask", ("edit.drop=cat",), [whole], "whole_image"),  # black all over
        ("mask", ("edit.drop=cat",), [part], None),
        ("fill", ("edit.drop=cat",), [part], None),
        ("erase", ("edit.drop=cat",), [part], None),
        ("crop", ("edit.keep=cat",), [("cat", corners)], "whole_image"),
        ("crop", ("edit.keep=cat", "edit.crop.margin=2"), [part], "whole_image"),
        ("cutout", ("edit.apart=true",), [whole, part], None),
        ("cutout", ("edit.apart=true",), [part, whole], None),
        ("cutout", ("edit.apart=true",), [whole, whole], "whole_image"),
    ):
        [result] = edited(settings(mode, *overrides), [variants["grey.png"]], [masks])
        assert result.ok and result.values["unchanged"] == unchanged, (mode, overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("edit.mode=cutout", "edit.format=jpeg"), "transparency"),
        (("edit.mode=erase", "edit.drop=[kat]"), "Did you mean 'cat'"),
        (("edit.mode=erase", "edit.drop=[cat]", "edit.keep=[sky]"), "either what stays or what goes"),
        (("edit.mode=fill", "edit.fill.kind=image"), "fill.image"),
        (("edit.mode=fill", "edit.fill.kind=image", "edit.fill.image=nowhere.png"), "no picture nowhere.png"),
        (("edit.mode=fill", "edit.fill.colour=colourless"), "colourless"),
        (("edit.mode=erase", "edit.apart=true"), "edit.apart"),
        (("edit.mode=remove", "inpaint.model=nowhere"), "no pipeline 'nowhere'"),
        (("edit.mode=remove", "inpaint.model=sdxl-inpainting"), "models fetch sdxl-inpainting"),
    ],
)
def test_settings_that_cannot_be_done_are_refused(overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(OvsegError, match=expected):
        EditStage(resolve(load_config("demo", overrides, {"labels": "cat, sky"}, environment={})))


def test_words_are_asked_for_before_the_run(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run", "--edit", "replace", "--drop", "cat"))
    assert done.returncode == 2
    assert "edit.prompt" in done.stderr and "edit_prompt" in done.stderr
