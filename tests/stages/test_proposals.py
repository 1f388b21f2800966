"""Proposals are SAM2's own automatic masks, and refining by them means something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.io import rle
from ovseg_batch.io.images import read_image
from ovseg_batch.io.limits import Limits
from ovseg_batch.methods.proposals import keep_distinct, point_grid
from ovseg_batch.stages.propose import ProposeStage
from ovseg_batch.stages.registry import resolve
from ovseg_batch.types import ImageRow, Proposal
from tests.conftest import Command, run_arguments

SETTINGS = {"points_per_side": 8, "predicted_iou": 0.6, "stability": 0.8, "nms": 0.7}


def test_point_grid() -> None:
    assert point_grid(2, (10, 20)).tolist() == [[5, 2.5], [15, 2.5], [5, 7.5], [15, 7.5]]


def test_of_two_that_overlap_the_better_one_stays() -> None:
    boxes = [((0, 0, 10, 10), 0.7), ((1, 0, 10, 10), 0.9), ((50, 50, 5, 5), 0.1)]
    found = keep_distinct([Proposal(box, 0, b"", rated, 1.0, (0, 0)) for box, rated in boxes], 0.7)
    assert [one.predicted_iou for one in found] == [0.9, 0.1]
    assert keep_distinct([], 0.7) == []


@pytest.mark.parametrize("multimask", [True, False], ids=["three masks", "one mask"])
def test_the_automatic_mask_generator_gives_the_same(multimask: bool, few_scenes: Path) -> None:
    """One mask is the first of the decoder, as in a model that was built without postprocessing."""
    path = sorted((few_scenes / "images").iterdir())[0]
    config = load_config(
        "demo",
        flags={
            "labels": list(scenes.CLASSES),
            "propose.multimask": multimask,
            **{f"propose.{name}": value for name, value in SETTINGS.items()},
        },
        environment={},
    )
    stage = ProposeStage(resolve(config))
    stage.setup("cpu")
    [result] = stage.process([ImageRow(0, "a", "a", str(path))], {})
    ours = result.values["proposals"]
    stage._sam.model.sam_mask_decoder.dynamic_multimask_via_stability = False
    generator = SAM2AutomaticMaskGenerator(
        stage._sam.model,
        points_per_side=8,
        points_per_batch=8,
        pred_iou_thresh=SETTINGS["predicted_iou"],
        stability_score_thresh=SETTINGS["stability"],
        box_nms_thresh=SETTINGS["nms"],
        multimask_output=multimask,
    )
    side = stage._sam.image_size
    generator.predictor._bb_feat_sizes = [(side // k, side // k) for k in (4, 8, 16)]  # else it is sure of 1024
    image = read_image(path, Limits(10**8, 10**9))
    theirs = sorted(generator.generate(image), key=lambda found: -found["predicted_iou"])
    assert len(ours) == len(theirs) > 5
    for mine, other in zip(ours, theirs, strict=True):
        mask = rle.decode(mine.rle, *image.shape[:2])
        union = (mask | other["segmentation"]).sum()
        assert (mask & other["segmentation"]).sum() >= 0.999 * union
        assert mine.predicted_iou == pytest.approx(other["predicted_iou"], abs=1e-4)
        assert mine.stability == pytest.approx(other["stability_score"], abs=1e-3)
        assert mine.point == pytest.approx(other["point_coords"][0])
        assert np.abs(np.array(mine.bbox) - [*other["bbox"][:2], other["bbox"][2] + 1, other["bbox"][3] + 1]).max() <= 1


def test_automatic_masks_refine_too(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    small = ("--set", "propose.points_per_side=8", "--set", "propose.stability=0.8", "--set", "refine.method=automatic")
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run", *small))
    assert done.returncode == 0, done.stderr
    found = json.loads(command("eval", tmp_path / "run", "--dataset", "scenes", "--root", few_scenes, "--json").stdout)
    assert found["mIoU"] > 0.6
    again = command(*run_arguments(few_scenes / "images", tmp_path / "run", *small, "--set", "refine.vote=0.5"))
    assert "propose: computing" not in again.stderr and "dense: computing" not in again.stderr
