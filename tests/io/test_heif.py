"""Photographs of phones: named in the listing without their package, read, edited and exported with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg_batch import scenes
from ovseg_batch.errors import RowError
from ovseg_batch.io import heif
from ovseg_batch.io.images import open_image, read_image, upright_size
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.manifest import build_manifest
from ovseg_batch.io.pictures import read_picture
from tests.conftest import Command

LIMITS = Limits(10_000_000, 10_000_000)
TURNED = 6  # EXIF's orientation of a phone that is held upright


@pytest.fixture(autouse=True)
def registered_anew() -> Iterator[None]:
    heif.register.cache_clear()
    yield
    heif.register.cache_clear()


def photograph(path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = TURNED, "a phone"
    heif.register()
    Image.fromarray(np.rot90(pixels)).save(path, "HEIF", quality=-1, exif=exif.tobytes())


def test_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    (tmp_path / "other.png").write_bytes(b"no image")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    notes = build_manifest([str(tmp_path)], tmp_path / "m.parquet", 2).notes()
    assert f"1 image is in HEIF, which cannot be read yet. {heif.ADVICE} (phone.HEIC)" in notes
    with pytest.raises(RowError, match=r"It is a HEIF image\. Run `pip install pillow-heif`"):
        read_image(tmp_path / "phone.HEIC", LIMITS)
    with pytest.raises(RowError) as raised:
        read_image(tmp_path / "other.png", LIMITS)
    assert "HEIF" not in raised.value.message


def test_with_its_package(tmp_path: Path) -> None:
    """Its reader turns the pixels by the EXIF orientation, and leaves no orientation to apply."""
    pixels = np.zeros((96, 64, 3), np.uint8)
    pixels[:32, 32:] = 255, 0, 0
    path = tmp_path / "phone.HEIC"
    photograph(path, pixels)
    assert build_manifest([str(path)], tmp_path / "m.parquet", 2).heif == 0
    read = read_image(path, LIMITS)
    assert np.abs(read.astype(int) - pixels).mean() < 4  # the format keeps colours at half the size
    with open_image(str(path), LIMITS) as image:
        assert upright_size(image, path) == (96, 64)
        picture = read_picture(image, path)
    assert np.array_equal(picture.pixels, read) and b"a phone" in picture.exif


def test_from_a_run_to_its_edits_and_exports(tmp_path: Path, command: Command) -> None:
    (tmp_path / "in").mkdir()
    scene = scenes.render(scenes.DEMO_SEEDS[0]).image
    photograph(tmp_path / "in" / "phone.heic", scene)
    Image.fromarray(scene).save(tmp_path / "in" / "same.png")
    done = command("run", tmp_path / "in", "-o", tmp_path / "out", "--labels", "sky; grass", "--edit", "mask")
    assert done.returncode == 0, done.stderr
    sizes = {Image.open(path).size for path in (tmp_path / "out" / "edited").iterdir()}
    assert sizes == {scene.shape[1::-1]}
    for form, kind in (("yolo", "HEIF"), ("hf-imagefolder", "PNG")):  # Ultralytics reads HEIF itself
        assert command("export", tmp_path / "out", "-f", form, "-o", tmp_path / form).returncode == 0
        [exported] = [path for path in (tmp_path / form).rglob("phone*") if "images" in path.parts]
        with Image.open(exported) as image:
            assert (image.format, image.size) == (kind, scene.shape[1::-1])
