"""DINO's features are those of timm, and its weights are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.models import presets, zoo
from ovseg_batch.models.dino import Dino
from ovseg_batch.models.missing import MissingModels
from tests.support.tiny_dino import save_tiny_dino


def tiny(folder: Path) -> str:
    return f"local-dir:{save_tiny_dino(folder, patch=8, side=32)}"


def load(model: str, weights: str | None = None) -> Dino:
    return Dino.load(zoo.resolve("dino", model, weights), torch.device("cpu"), "fp32")


def test_features_are_those_of_timm(tmp_path: Path) -> None:
    dino = load(tiny(tmp_path))
    images = dino.normalise(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    kept: dict[str, Any] = {}
    with torch.no_grad():
        dino.model.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, out: kept.update(qkv=out))
        expected = dino.model.forward_features(images)[:, 1:]
        query, key, _ = kept["qkv"][:, 1:].chunk(3, dim=-1)
    assert dino.patch == 8
    torch.testing.assert_close(dino.features(images).flatten(1, 2), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        dino.query_key(images).flatten(1, 2), F.normalize(query + key, dim=-1), atol=1e-5, rtol=0
    )


def test_other_sizes_resize_the_position_and_crop_the_patches(tmp_path: Path) -> None:
    dino = load(tiny(tmp_path))
    assert dino.features(torch.zeros(1, 3, 45, 24)).shape == (1, 5, 3, 32)


def test_named_models_have_the_shapes_that_timm_builds() -> None:
    for name, preset in presets.DINO.items():
        spec = zoo.resolve("dino", name, "random:0")
        model: Any = timm.create_model(preset.architecture, pretrained=False, num_classes=0)
        assert (spec.window, spec.patch, spec.width) == (224, model.patch_embed.patch_size[0], model.embed_dim)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    save_file({"norm.weight": torch.ones(24)}, tmp_path / "other.safetensors")
    with pytest.raises(OvsegError, match="do not fit the architecture"):
        load(model, str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ("dino-b9", None, "Did you mean 'dino-b8'"),
        ("local-dir:FOLDER", None, "has no readable config.json"),
        ("local-dir:FOLDER", {"model_args": {"img_size": 32}}, "has no readable config.json"),
        ("local-dir:FOLDER", {"model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 24}}, "no weights file"),
    ],
)
def test_a_wrong_model_is_named(model: str, config: dict[str, Any] | None, expected: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=expected):
        zoo.resolve("dino", model.replace("FOLDER", str(tmp_path)))


def test_weights_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingModels, match="models fetch dino-b8"):
        zoo.resolve("dino", "dino-b8")
