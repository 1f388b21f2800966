"""ViTMatte's alpha is that of transformers, and its weights are checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VitMatteForImageMatting
from transformers.models.vitmatte.image_processing_vitmatte import VitMatteImageProcessor

from ovseg_batch import scenes
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.methods.matting import trimap
from ovseg_batch.models import presets, zoo
from ovseg_batch.models.missing import MissingModels
from ovseg_batch.models.vitmatte import VitMatte, load_model
from ovseg_batch.types.arrays import Numbers, Pixels
from tests.harness.image_variants import disc
from tests.support.tiny_vitmatte import save_tiny_vitmatte, save_vitmatte

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vitmatte(tmp_path_factory.mktemp("matte"))


def picture(height: int, width: int) -> tuple[Pixels, Pixels]:
    """Return a rendered scene of any size, and the trimap of a disc in it."""
    scene = scenes.render(3).image
    rows, columns = (np.arange(side) % scene.shape[k] for k, side in enumerate((height, width)))
    return np.ascontiguousarray(scene[rows][:, columns]), trimap(disc(height, width), 9)


def theirs(folder: Path, image: Pixels, known: Pixels) -> Numbers:
    """Return alpha as transformers computes it from the folder."""
    model: Any = VitMatteForImageMatting.from_pretrained(folder).eval()
    processor: Any = VitMatteImageProcessor.from_pretrained(folder)
    inputs = processor(images=image, trimaps=known, return_tensors="pt")
    with torch.inference_mode():
        alphas = model(**inputs).alphas
    return np.asarray(alphas[0, 0, : image.shape[0], : image.shape[1]])


@pytest.mark.parametrize("size", [(96, 128), (101, 75), (240, 320)])
def test_alpha_is_that_of_transformers(folder: Path, size: tuple[int, int]) -> None:
    image, known = picture(*size)
    matte = VitMatte.load(zoo.resolve("matte", str(folder)), CPU, "fp32")
    ours, expected = matte.alpha(image, known), theirs(folder, image, known)
    assert ours.shape == size and np.abs(ours - expected).max() < 1e-6
    assert ours.min() < 0.1 and ours.max() > 0.9  # the whole range is compared
    processor: Any = VitMatteImageProcessor()
    given = processor(images=image, trimaps=known, return_tensors="pt")["pixel_values"][0]
    assert (matte.preprocess(image, known) - given).abs().max() < 1e-6


def test_half_precision_lowers_the_backbone_alone(folder: Path) -> None:
    image, known = picture(96, 128)
    spec = zoo.resolve("matte", f"local-dir:{folder}")
    exact, half = (VitMatte.load(spec, CPU, kind) for kind in ("fp32", "bf16"))
    assert {p.dtype for p in half.model.decoder.parameters()} == {torch.float32}
    assert half.model.backbone.embeddings.projection.weight.dtype == torch.bfloat16
    apart = np.abs(exact.alpha(image, known) - half.alpha(image, known))
    assert 0 < apart.mean() < 0.02


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state = load_file(folder / "model.safetensors")
    state.pop("decoder.matting_head.matting_convs.0.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(OvsegError, match=r"do not fit the ViTMatte .*: 1 tensor missing"):
        load_model(zoo.resolve("matte", str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(OvsegError, match="cannot be read as weights"):
        load_model(zoo.resolve("matte", str(tmp_path)))


def test_names_and_folders(folder: Path, tmp_path: Path) -> None:
    own = zoo.resolve("matte", str(folder))
    assert own.weights == str(folder / "model.safetensors") and own.config_hash
    with pytest.raises(UsageError, match=r"Did you mean 'vitmatte-small'\?.* Names: vitmatte-small, "):
        zoo.resolve("matte", "vitmate-small")
    for model in ("vitmatte-small", presets.MATTE["vitmatte-small"].hub):
        with pytest.raises(
            MissingModels, match=r"ViTMatte weights.*Apache-2.0.*`ovseg-batch models fetch vitmatte-small`"
        ):
            zoo.resolve("matte", model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    with pytest.raises(UsageError, match="of type 'sam', not a ViTMatte"):
        zoo.resolve("matte", str(tmp_path))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    values = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**values, "image_mean": [0.4, 0.5, 0.5]}))
    with pytest.raises(UsageError, match="image_mean"):
        zoo.resolve("matte", str(tmp_path))


@pytest.mark.slow("a file of full size in the hub's layout loads strictly, and gives transformers' alpha")
@pytest.mark.parametrize("name", ["vitmatte-small", "vitmatte-base-d646"])
def test_a_file_of_full_size_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vitmatte(tmp_path, presets.MATTE_CONFIGS[presets.MATTE[name].architecture])
    size = (tmp_path / "model.safetensors").stat().st_size
    assert abs(size / (presets.MATTE[name].size or 0) - 1) < 0.001
    shutil.copy(tmp_path / "model.safetensors", tmp_path / f"{name}.safetensors")
    monkeypatch.setenv("OVSEG_CHECKPOINTS", str(tmp_path))
    image, known = picture(256, 320)
    ours = VitMatte.load(zoo.resolve("matte", name), CPU, "fp32").alpha(image, known)
    assert np.abs(ours - theirs(tmp_path, image, known)).max() < 1e-5
