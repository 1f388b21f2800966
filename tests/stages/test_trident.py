"""Trident as published: SAM's attention over the whole image, and SAM's masks for the map, with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovseg_batch.config import load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.stages.plans import DensePlan
from ovseg_batch.stages.refine.plan import RefinePlan
from ovseg_batch.stages.registry import resolve
from tests.conftest import LABELS, Command
from tests.support.tiny_dino import save_tiny_dino
from tests.support.tiny_sam1 import save_tiny_sam1

TRIDENT = ("dense.attention=trident", "refine.method=trident-map", "refine.output=semantic", "refine.min_region=20")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Settings that name a tiny SAM and a tiny DINO."""
    sam, dino = (save(tmp_path_factory.mktemp("model")) for save in (save_tiny_sam1, save_tiny_dino))
    return f"sam.model=local-dir:{sam}", f"dino.model=local-dir:{dino}", *TRIDENT


def run(command: Command, images: Path, workdir: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    flags = [flag for one in settings for flag in ("--set", one)]
    done = command("run", images, "-o", workdir, "--labels", LABELS, "--workers", "0", *flags)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((workdir / "annotations.json").read_text())
    return found


def test_an_image_is_one_window_with_the_patches_of_sam(
    models: tuple[str, ...], few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    found = run(command, few_scenes / "images", tmp_path / "run", (*models, "refine.predicted_iou=0"))
    [file] = (tmp_path / "run").glob("stages/dense-*/data/*/*.npz")
    with np.load(file) as arrays:
        shapes = [arrays[name].shape for name in arrays.files]
    assert all(shape[0] == 1 and max(shape[2:]) == 8 for shape in shapes)  # 128 pixels, in patches of 16
    assert found["annotations"]
    fused = run(
        command, few_scenes / "images", tmp_path / "fused", (*models, "refine.predicted_iou=0", "dense.cache=none")
    )
    assert fused["annotations"] == found["annotations"]


def test_masks_of_a_low_predicted_iou_leave_the_map_unchanged(
    models: tuple[str, ...], few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    refined, dropped, plain = (
        run(command, few_scenes / "images", tmp_path / name, (*models, *more))["annotations"]
        for name, more in {
            "refined": ("refine.predicted_iou=0",),
            "dropped": ("refine.predicted_iou=1",),
            "plain": ("refine.method=none",),
        }.items()
    )

    def masks(found: list[dict[str, Any]]) -> list[Any]:
        return [(one["image_id"], one["category_id"], one["segmentation"]["counts"]) for one in found]

    assert masks(dropped) == masks(plain) != masks(refined)


def test_windows_are_rounded_to_patches_and_halves_double_the_map(
    models: tuple[str, ...], few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    settings = (*models, "dense.window=75", "dense.stride=30", "dense.trident.halves=true", "refine.method=none")
    assert run(command, few_scenes / "images", tmp_path / "run", settings)["images"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("sam.model=demo",), "dense.attention: trident reads the attention of SAM's first version"),
        (("dense.draft=true",), "dense.draft: false"),
        (("dense.layers=[0.5, 1.0]",), "goes with dense.views: plain"),
    ],
)
def test_settings_that_exclude_each_other(models: tuple[str, ...], settings: tuple[str, ...], expected: str) -> None:
    config = load_config("demo", [*models, *settings], {"labels": LABELS}, environment={})
    with pytest.raises(UsageError, match=expected):
        DensePlan(resolve(config))


def test_the_map_needs_the_first_sam(models: tuple[str, ...]) -> None:
    settings = [*models, "sam.model=demo", "dense.attention=csa"]
    with pytest.raises(UsageError, match="trident-map needs SAM's first version"):
        RefinePlan(resolve(load_config("demo", settings, {"labels": LABELS}, environment={})))


def test_the_aggregation_is_part_of_the_fingerprint_of_trident_alone(models: tuple[str, ...]) -> None:
    def inputs(*settings: str) -> dict[str, Any]:
        config = load_config("demo", [*models, *settings], {"labels": LABELS}, environment={})
        return DensePlan(resolve(config)).inputs()

    assert inputs() != inputs("dense.trident.cosine=0")
    plain = "dense.attention=csa"
    assert inputs(plain) == inputs(plain, "dense.trident.cosine=0") and "sam" not in inputs(plain)
