"""Regions: painted masks, their classes, and CorrCLIP with DINO on maps that were made beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg_batch.config import load_config
from ovseg_batch.io import rle
from ovseg_batch.methods.proposals import region_classes
from ovseg_batch.models.regions import _nearest, merge_regions
from ovseg_batch.stages.regions import region_map
from ovseg_batch.types import Proposal
from ovseg_batch.types.arrays import Mask
from tests.conftest import Command, run_arguments
from tests.support.tiny_dino import save_tiny_dino


def proposal(mask: Mask) -> Proposal:
    counts = rle.encode(np.asfortranarray(mask))
    return Proposal(tuple(rle.bounding_box(counts, *mask.shape)), int(mask.sum()), counts, 1.0, 1.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dense.attention": "corrclip"}, [0, 1, 2, 1, 0]),
        ({"dense.attention": "corrclip-dino"}, [0, 2, 2, 2, 0]),
        ({"dense.attention": "corrclip-dino", "propose.masks": "maps"}, [0, 2, 1, 2, 0]),
    ],
    ids=["small over large", "large over small", "as listed"],
)
def test_masks_are_painted_over_each_other(settings: dict[str, str], expected: list[int]) -> None:
    large, small = np.array([[0, 1, 1, 1, 0]], bool), np.array([[0, 0, 1, 0, 0]], bool)
    listed = [small, large] if "propose.masks" not in settings else [small, large & ~small]
    config = load_config("demo", flags={"labels": "sky", **settings}, environment={})
    assert region_map([proposal(mask) for mask in listed], (1, 5), config).tolist() == [expected]


def test_a_region_takes_its_most_frequent_class_except_the_one_with_the_smallest_number() -> None:
    labels = np.array([[2, 1, 0, 0, 3, -1]], np.int16)
    for regions, expected in (
        ([0, 0, 5, 5, 5, 5], [2, 1, 0, 0, 0, 0]),  # the background counts
        ([4, 4, 4, 9, 9, 9], [2, 1, 0, -1, -1, -1]),  # of equal ones the first
        ([7, 7, 7, 7, 7, 7], [2, 1, 0, 0, 3, -1]),
    ):
        found = region_classes(np.array([regions], np.int32), labels)
        assert found.dtype == np.int16 and found.tolist() == [expected]


def test_merged_regions_leave_region_0_alone() -> None:
    features = torch.nn.functional.normalize(torch.tensor([[[1.0, 0], [1, 0.01], [0, 1], [0.5, 0.5]]]), dim=-1)
    assert merge_regions(features, torch.tensor([[3, 5, 9, 0]])).tolist() == [[1, 1, 2, 0]]
    assert _nearest(torch.arange(8)[None], (1, 4)).tolist() == [[0, 2, 4, 6]]


@pytest.fixture
def maps(few_scenes: Path, tmp_path: Path) -> Path:
    """Maps of stripes for the six scenes: no pixel of the second half of them is without a region."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for number, image in enumerate(sorted((few_scenes / "images").iterdir())):
        truth = few_scenes / "truth" / f"{image.name}.classes.png"
        height, width = np.asarray(Image.open(truth)).shape
        stripes = np.arange(width) // 40 + (number > 2)
        np.savez_compressed(folder / f"{image.stem}.npz", instance_mask=np.tile(stripes, (height, 1)))
    return folder


def test_corrclip_with_dino_gives_each_region_one_class(
    maps: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    chosen = {
        "dense.attention": "corrclip-dino",
        "dino.model": f"local-dir:{save_tiny_dino(tmp_path / 'dino', patch=8)}",
        "propose.masks": maps,
        "refine.method": "regions",
        "refine.output": "semantic",
    }
    options = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    run = run_arguments(few_scenes / "images", tmp_path / "run", *options)
    done = command(*run)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "annotations.json").read_text())
    seen = 0
    for image in found["images"]:
        regions = np.load(maps / f"{Path(image['file_name']).stem}.npz")["instance_mask"]
        for one in (one for one in found["annotations"] if one["image_id"] == image["id"]):
            mask = rle.decode(one["segmentation"]["counts"], image["height"], image["width"])
            shares = [mask[regions == number].mean() for number in np.unique(regions)[1:]]
            assert set(shares) <= {0.0, 1.0}
            seen += 1
    assert seen > 6
    again = command(*run_arguments(few_scenes / "images", tmp_path / "run", *options, "--set", "dense.logit_scale=30"))
    assert "propose: computing" not in again.stderr and again.returncode == 0
    (maps / f"{sorted((few_scenes / 'images').iterdir())[0].stem}.npz").unlink()
    changed = command(*run)
    assert changed.returncode == 3, "the folder has changed, so the maps are read again"
    assert "there is no region map" in (tmp_path / "run" / "failures.csv").read_text()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"propose.masks": "nowhere"}, "there is no folder nowhere"),
        ({"propose.masks": ".", "dense.attention": "corrclip"}, "Set dense.attention: corrclip-dino"),
    ],
)
def test_settings_that_exclude_each_other_are_named(
    settings: dict[str, str], expected: str, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    options += ["--set", "refine.method=automatic"]
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run", *options))
    assert done.returncode == 2 and expected in done.stderr
