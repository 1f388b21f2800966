"""Images in memory: the masks are those of a run over the same images as files."""

from __future__ import annotations

import multiprocessing.pool
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ovseg_batch
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.sam import Sam
from tests.conftest import LABELS

NAMES = LABELS.split(", ")


@pytest.fixture(scope="module")
def arrays(few_scenes: Path) -> list[np.ndarray]:
    return [np.array(Image.open(path).convert("RGB")) for path in sorted((few_scenes / "images").iterdir())]


@pytest.fixture(scope="module")
def segmenter() -> ovseg_batch.Segmenter:
    return ovseg_batch.Segmenter(NAMES, config="demo")


def as_files(arrays: Sequence[np.ndarray], folder: Path) -> Path:
    folder.mkdir()
    for k, pixels in enumerate(arrays):
        Image.fromarray(pixels).save(folder / f"{k:06d}.png")
    return folder


def run_of(arrays: Sequence[np.ndarray], folder: Path, **settings: object) -> ovseg_batch.Run:
    images = as_files(arrays, folder / "images")
    return ovseg_batch.run(images, NAMES, folder / "run", config="demo", settings=settings, progress=False)


def test_an_array_gets_the_masks_of_its_file(
    segmenter: ovseg_batch.Segmenter, arrays: list[np.ndarray], tmp_path: Path
) -> None:
    found, [expected] = segmenter(arrays[0]), run_of(arrays[:1], tmp_path)
    assert found.masks == expected.masks and len(found.masks) > 2  # RLE bytes, scores and all
    assert found.path is None and np.array_equal(found.read(), arrays[0])
    assert (found.height, found.width, found.colours) == (expected.height, expected.width, expected.colours)
    assert found.overlay().tobytes() == expected.overlay().tobytes()
    assert segmenter.labels == tuple(NAMES)


def test_several_images_over_several_shards(arrays: list[np.ndarray], tmp_path: Path) -> None:
    settings = {"manifest.shard_rows": 2, "method": "proposals", "propose.points_per_side": 8}
    found = ovseg_batch.segment(arrays[:3], NAMES, config="demo", settings=settings)
    assert [image.masks for image in found] == [image.masks for image in run_of(arrays[:3], tmp_path, **settings)]
    assert any(image.masks for image in found) and ovseg_batch.segment([], NAMES, config="demo") == []


def test_models_are_loaded_once(arrays: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    for model in (DenseClip, Sam):
        load = model.load

        def counted(*args: Any, load: Callable[..., object] = load, name: str = model.__name__) -> object:
            loaded.append(name)
            return load(*args)

        monkeypatch.setattr(model, "load", counted)
    segmenter = ovseg_batch.Segmenter(NAMES, config="demo")
    assert loaded == []
    first = segmenter(arrays[1])
    assert segmenter(arrays[1]).masks == first.masks and segmenter(arrays[2]).masks != first.masks
    assert sorted(loaded) == ["DenseClip", "Sam"]


def test_threads_of_the_caller(segmenter: ovseg_batch.Segmenter, arrays: list[np.ndarray]) -> None:
    """Calls from several threads do not mix, and PyTorch's number of threads stays the caller's."""
    before = torch.get_num_threads()
    alone = [segmenter(pixels).masks for pixels in arrays[:2]]
    with multiprocessing.pool.ThreadPool(2) as pool:
        assert [image.masks for image in pool.map(segmenter, arrays[:2])] == alone
    assert torch.get_num_threads() == before


def test_a_pillow_image_is_read_as_a_file_would_be(
    segmenter: ovseg_batch.Segmenter, arrays: list[np.ndarray], tmp_path: Path
) -> None:
    image = Image.fromarray(arrays[0][:, ::-1])
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = image.getexif()
    exif[0x0112] = 2  # mirrored
    image.save(tmp_path / "turned.png", exif=exif)
    [expected] = ovseg_batch.run(tmp_path / "turned.png", NAMES, tmp_path / "run", config="demo", progress=False)
    found = segmenter(Image.open(tmp_path / "turned.png"))
    assert np.array_equal(found.read(), expected.read()) and found.masks == expected.masks


def test_edits_are_left_out(arrays: list[np.ndarray]) -> None:
    settings = {"edit.mode": "cutout", "refine.method": "none"}
    assert ovseg_batch.segment(arrays[0], NAMES, config="demo", settings=settings).masks


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"The image is an array of float32, 8×8×3. Give \(H, W, 3\) uint8 RGB."),
        (np.zeros((8, 8), np.uint8), "array of uint8, 8×8"),
        (np.zeros((0, 8, 3), np.uint8), "0×8×3"),
        ([np.zeros((8, 8, 4), np.uint8)], "Image 0 is an array of uint8, 8×8×4"),
        ("photo.jpg", "'photo.jpg' is a path. Segment files with ovseg_batch.run"),
        ([Path("photo.jpg")], "Image 0 is a PosixPath"),
    ],
)
def test_what_is_no_image(segmenter: ovseg_batch.Segmenter, images: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        segmenter(images)  # type: ignore[call-overload]


def test_an_image_that_cannot_be_segmented_raises(arrays: list[np.ndarray]) -> None:
    settings = {"run.max_pixels": 10, "refine.method": "none"}
    with pytest.raises(OvsegError, match="Image 0 cannot be segmented: dense failed with too_large"):
        ovseg_batch.segment(arrays[0], NAMES, config="demo", settings=settings)
    with pytest.raises(UsageError, match=r"Did you mean 'refine\.vote'"):
        ovseg_batch.Segmenter(NAMES, settings={"refine.votee": 1})
