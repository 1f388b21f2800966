"""Proposals first: the formulas by hand, and whole runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ovseg_batch import scenes
from ovseg_batch.methods.crops import isolated_crop, resized_crop
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.selection import (
    adaptive_floor,
    choose_adaptively,
    choose_top,
    distinct,
    probabilities,
    size_penalty,
    suppressed,
)
from tests.conftest import Command, run_arguments

PROPOSALS = (
    "--set=method=proposals",
    "--set=clip.model=demo-token",
    "--set=propose.predicted_iou=0.6",
    "--set=propose.stability=0.7",
    "--set=propose.points_per_side=12",
)


def test_suppression_takes_off_what_a_mask_has_in_common_with_nothing() -> None:
    likeness = np.array([[0.30, 0.20], [0.25, 0.28]])
    out = suppressed(likeness, np.array([0.2, 0.1]), np.array([[0.0, 0.1], [0.0, 0.2]]), 0.3, 0.3)
    assert np.allclose(out, [[0.24, 0.11], [0.22, 0.19]])


def test_the_floor_is_the_median_of_the_classes_bests_or_the_least() -> None:
    scores = np.array([[0.10, 0.30, 0.16], [0.14, 0.20, 0.11]])
    assert adaptive_floor(scores, 0.12) == pytest.approx(0.16)
    assert adaptive_floor(scores, 0.2) == 0.2


def test_the_size_penalty_is_equation_4_11() -> None:
    assert np.allclose(size_penalty(np.array([0.1, 0.15, 0.325, 0.5, 0.9])), [1, 1, 0.575, 0.15, 0.15])


def test_a_class_ruled_out_has_no_probability() -> None:
    found = probabilities(np.array([[0.2, 0.5, 0.21]]), np.array([True, False, True]), 100)
    assert found[0, 1] == 0 and found.sum() == pytest.approx(1) and found[0, 2] == pytest.approx(np.e / (1 + np.e))


def test_of_masks_that_overlap_the_best_rated_stays() -> None:
    overlap = np.array([[1, 0.8, 0], [0.8, 1, 0], [0, 0, 1]])
    assert distinct(np.array([0.5, 0.6, 0.1]), overlap, 0.7) == [1, 2]


RATED = np.array([0.9, 0.88, 0.86, 0.3, 0.28])
APART = np.eye(5)


@pytest.mark.parametrize(
    ("word", "kept", "part"),
    [
        ("car", [0, 1, 2], "3 of 5: 'car' is singular (1), 5 stand alone, scores fall after 3"),
        ("cars", [0, 1, 2, 3, 4], "5 of 5: 'cars' is plural (5), 5 stand alone, scores fall after 3"),
        ("glass", [0, 1, 2], "singular"),
        ("people", [0, 1, 2, 3, 4], "plural"),
    ],
)
def test_the_noun_the_hierarchy_and_the_gap_vote(word: str, kept: list[int], part: str) -> None:
    choice = choose_adaptively([word], range(5), RATED, APART)
    assert choice.indices == kept and part in choice.reason


def test_a_part_inside_a_kept_whole_is_passed_over_unless_the_word_names_a_part() -> None:
    inside = np.eye(4)
    inside[1, 0] = inside[2, 0] = inside[3, 0] = 1.0  # three masks that lie in the first
    rated = np.array([0.9, 0.89, 0.88, 0.87])
    assert choose_adaptively(["cars"], range(4), rated, inside).indices == [0]
    wheels = choose_adaptively(["wheels"], range(4), rated, inside)
    assert wheels.indices == [0, 1, 2, 3] and "'wheels' is a part" in wheels.reason
    assert choose_top(range(4), 2).indices == [0, 1]
    assert choose_adaptively(["car"], [], rated, inside).indices == []


def test_a_crop_holds_the_mask_and_little_else() -> None:
    image = np.full((40, 60, 3), 200, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[0:10, 50:60] = True  # in a corner: the square goes beyond the image
    alone = isolated_crop(image, PlacedMask.crop(mask), (1, 2, 3), keep=0.0)
    assert alone.shape == (12, 12, 3) and (alone == 200).all(axis=-1).sum() == 100
    assert set(map(tuple, alone.reshape(-1, 3).tolist())) == {(200, 200, 200), (1, 2, 3)}
    assert (isolated_crop(image, PlacedMask.crop(mask), (1, 2, 3), keep=1.0) == 200).all(axis=-1).sum() == 121
    assert resized_crop(alone, 32).shape == (32, 32, 3)


@pytest.mark.slow("every method gives masks that agree with the ground truth")
@pytest.mark.parametrize("scorer", ["crops", "mask-tokens"])
def test_masks_first_means_something(few_scenes: Path, tmp_path: Path, command: Command, scorer: str) -> None:
    options = (*PROPOSALS, f"--set=classify.scorer={scorer}", "--set=classify.top_k=adaptive")
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run", *options))
    assert done.returncode == 0, done.stderr
    coco = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert coco["annotations"] and all(" of " in a["reason"] and 0 <= a["score"] <= 1 for a in coco["annotations"])
    found = json.loads(command("eval", tmp_path / "run", "--dataset", "scenes", "--root", few_scenes, "--json").stdout)
    assert found["mIoU"] > (0.5 if scorer == "crops" else 0.3), found


@pytest.mark.slow("another vocabulary reads no image")
def test_another_vocabulary_shows_no_model_a_picture(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    first = command("run", few_scenes / "images", "-o", tmp_path / "run", "--labels", "car, sky", *PROPOSALS)
    assert first.returncode == 0, first.stderr
    done = command("run", few_scenes / "images", "-o", tmp_path / "run", "--labels", "cat", *PROPOSALS, "--dry-run")
    assert [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" 0 shards to do")] == [
        "propose",
        "embed",
    ]


def test_suppression_denoising_and_the_penalty_run(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "config.yaml").write_text(
        "extends: demo\n"
        f"labels: [{', '.join(n for n in scenes.CLASSES if n != 'car')}, {{name: car, confusers: [house, ball]}}]\n"
        "classify: {background: [wood], denoising: 0.1, size_penalty: true, top_k: 2, scales: [1], weights: [1]}\n"
    )
    done = command("run", few_scenes / "images", "-o", tmp_path / "run", "-c", tmp_path / "config.yaml", *PROPOSALS)
    assert done.returncode == 0, done.stderr
    coco = json.loads((tmp_path / "run" / "annotations.json").read_text())
    a_class = Counter((a["image_id"], a["category_id"]) for a in coco["annotations"])
    assert a_class and max(a_class.values()) <= 2


def test_a_missing_file_of_query_projections(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    options = (*PROPOSALS, "--set=classify.scorer=mask-tokens", f"--set=classify.tuned={tmp_path / 'no.pth'}")
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run", *options))
    assert done.returncode == 2 and "classify.tuned: there is no file" in done.stderr
