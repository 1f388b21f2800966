"""`compare`: what differs between two runs over the same images, and whether it is better."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ovseg_batch
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.comparison.compare import compare_runs
from ovseg_batch.evaluate.comparison.difference import Difference, TruthDifference
from ovseg_batch.evaluate.comparison.pairing import match_masks
from ovseg_batch.evaluate.comparison.record import record, verdicts
from ovseg_batch.workdir.store import Workdir
from tests.conftest import LABELS, Command, run_arguments
from tests.harness.image_variants import annotation
from tests.support import own_truth

Tree = dict[str, Any]


@pytest.fixture(scope="module")
def finished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the undisturbed run, which keeps the scores of this module."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("scored") / "run")


@pytest.fixture(scope="module")
def dense(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """The six scenes without SAM2: other masks, in shards of another size."""
    workdir = tmp_path_factory.mktemp("dense") / "run"
    more = ("--set", "refine.method=none", "--set", "manifest.shard_rows=4")
    done = command("run", few_scenes / "images", "-o", workdir, "--labels", LABELS, *more)
    assert done.returncode == 0, done.stderr
    return workdir


def compared(command: Command, *arguments: object) -> Tree:
    done = command("compare", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: Tree = json.loads(done.stdout)
    return found


def figures(command: Command, run: Path, *truth: object) -> Tree:
    found: Tree = json.loads(command("eval", run, *truth, "--json").stdout)
    return found


def test_a_run_does_not_differ_from_itself(finished: Path, few_scenes: Path, command: Command) -> None:
    done = command("compare", finished, finished, "--dataset", "scenes", "--root", few_scenes)
    assert done.returncode == 0 and "No difference: the masks of 6 images are equal in both runs." in done.stdout
    assert "No difference could be shown: B − A is +0.0 points of mIoU" in done.stdout
    found = compared(command, finished, finished)
    assert found["settings"] == {} and found["pixels with another label"] == 0 and found["most changed"] == []
    masks = json.loads((finished / "annotations.json").read_text())["annotations"]
    assert sum(one["masks"][0] for one in found["labels"].values()) == len(masks)
    for one in found["labels"].values():
        assert one["masks"][0] == one["masks"][1] == one["matched"] and one["mean IoU"] in (1, None)


@pytest.mark.parametrize("kind", ["data set", "coco", "maps"])
def test_the_figures_are_those_of_two_evaluations(
    kind: str, finished: Path, dense: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    truth: tuple[object, ...] = ("--dataset", "scenes", "--root", few_scenes)
    if kind == "coco":
        truth = ("--truth", own_truth.coco(few_scenes, tmp_path / "t.json"))
    elif kind == "maps":
        truth = ("--truth", own_truth.class_maps(few_scenes, tmp_path / "maps"))
    found = compared(command, finished, dense, *truth)
    a, b = (figures(command, run, *truth) for run in (finished, dense))
    mean = found["truth"]["mIoU"]
    assert (mean["A"], mean["B"], mean["B - A"]) == (a["mIoU"], b["mIoU"], b["mIoU"] - a["mIoU"])
    assert found["truth"]["images"] == 6 and mean["interval"][0] < mean["interval"][1] < 0
    assert found["verdict"].startswith("A is better than B by")
    for name, one in found["truth"]["IoU"].items():
        assert (one["A"], one["B"]) == (a["classes"][name]["IoU"], b["classes"][name]["IoU"])
        assert one["B - A"] == one["B"] - one["A"]
    assert found["settings"]["refine.method"] == {"A": "prompted", "B": "none"}


def test_counts_by_hand(finished: Path, dense: Path) -> None:
    """Pixels and masks of labels, from the masks of both runs as arrays."""
    found = compare_runs(Workdir(finished), Workdir(dense))
    runs = [ovseg_batch.Run(finished), ovseg_batch.Run(dense)]
    differs = total = 0
    for one in runs[0]:
        maps = [image.label_map(runs[0].labels) for image in (one, runs[1][one.name])]
        differs, total = differs + int((maps[0] != maps[1]).sum()), total + maps[0].size
    assert found.share == pytest.approx(differs / total) and found.pixels.sum() == total and found.equal == 0
    for label, change in found.by_label.items():
        counts = [sum(mask.label == label for image in run for mask in image.masks) for run in runs]
        assert change.masks == counts
        for side in (0, 1):
            assert change.matched + change.changed[side] + change.only[side] == change.masks[side]
    assert [one.share for one in found.most] == sorted((one.share for one in found.most), reverse=True)
    assert len(found.most) == 6 and compare_runs(Workdir(finished), Workdir(dense), 2).most == found.most[:2]


def test_the_order_does_not_matter(finished: Path, dense: Path) -> None:
    one = compare_runs(Workdir(finished), Workdir(dense))
    other = compare_runs(Workdir(dense), Workdir(finished))
    assert np.array_equal(one.pixels, other.pixels.T) and one.share == other.share
    assert {label: change.iou for label, change in one.by_label.items()} == pytest.approx(
        {label: change.iou for label, change in other.by_label.items()}
    )


def square(label: str, x: int, width: int = 10) -> Any:
    mask = np.zeros((20, 60), bool)
    mask[:, x : x + width] = True
    return annotation(label, mask, 0.5)


def test_masks_are_matched_within_labels_first() -> None:
    a = [square("cat", 0), square("dog", 20), square("car", 40)]
    b = [square("dog", 21), square("cat", 2), square("bus", 40), square("cat", 1)]
    found = match_masks(a, b, (20, 60))
    assert [(one, other) for one, other, _ in found.same] == [(0, 3), (1, 0)]
    assert found.changed == [(2, 2)] and found.only_a == [] and found.only_b == [1]
    assert found.same[1][2] == pytest.approx(9 / 11)
    assert match_masks([square("cat", 0)], [square("cat", 5)], (20, 60)).same == []
    assert match_masks([], [], (20, 60)).only_a == []


def test_other_labels_and_images_are_named(few_scenes: Path, finished: Path, tmp_path: Path, command: Command) -> None:
    images = tmp_path / "images"
    shutil.copytree(few_scenes / "images", images)
    for path in sorted(images.iterdir())[:2]:
        path.rename(path.with_stem(f"new-{path.stem}"))
    labels = "; ".join({"sky": "Sky: sky", "ball": "dog: ball"}.get(name, name) for name in LABELS.split(", "))
    assert command("run", images, "-o", tmp_path / "run", "--labels", labels).returncode == 0
    found = compared(command, finished, tmp_path / "run")
    assert found["images"] == 4 and found["images only in A"] == found["images only in B"] == 2
    assert found["labels only in A"] == ["ball"] and found["labels only in B"] == ["dog"]
    assert "sky" in found["labels"] and "Sky" not in found["labels"]
    done = command("compare", finished, tmp_path / "run")
    assert "Images that only A lists: 2." in done.stdout and "Labels that only B has: dog." in done.stdout


def test_unfinished_runs_are_compared_on_what_they_have(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    next(iter((run / "stages").glob("refine-*/commits/*/000001.json"))).unlink()
    truth = ("--dataset", "scenes", "--root", few_scenes)
    found = compared(command, finished, run, *truth)
    assert found["images"] == 4 and found["not finished in both"] == 2 and found["truth"]["images"] == 4


def test_what_cannot_be_compared(finished: Path, tmp_path: Path, command: Command, variants: dict[str, Path]) -> None:
    done = command("compare", finished, tmp_path)
    assert done.returncode == 2 and "is not a workdir" in done.stderr
    (tmp_path / "images").mkdir()
    shutil.copy(next(path for path in variants.values() if path.suffix == ".png"), tmp_path / "images" / "other.png")
    assert command(*run_arguments(tmp_path / "images", tmp_path / "run")).returncode == 0
    done = command("compare", finished, tmp_path / "run")
    assert done.returncode == 2 and "have no image in common: 6 images like" in done.stderr
    done = command("compare", finished, finished, "--dataset", "scenes")
    assert done.returncode == 2 and "needs --root" in done.stderr
    done = command("compare", finished, finished, "-o", finished)
    assert done.returncode == 2 and "holds no comparison" in done.stderr


@pytest.mark.parametrize(
    ("change", "limits", "images", "sentence"),
    [
        (
            0.021,
            (0.004, 0.039),
            200,
            "B is better than A by 2.1 points of mIoU (95 % interval 0.4 to 3.9, 200 images).",
        ),
        (-0.02, (-0.03, -0.01), 5, "A is better than B by 2.0 points of mIoU (95 % interval 1.0 to 3.0, 5 images)."),
        (0.001, (-0.01, 0.02), 9, "No difference could be shown: B − A is +0.1 points of mIoU (95 % interval -1.0"),
        (0.0, (0.0, 0.0), 9, "No difference could be shown"),
        (0.3, (0.3, 0.3), 1, "One image gives no interval."),
    ],
)
def test_sentences(change: float, limits: tuple[float, float], images: int, sentence: str) -> None:
    assert sentence in TruthDifference(images, Difference(0.5, 0.5 + change, limits), {}).sentence()


def test_from_python(finished: Path, dense: Path, few_scenes: Path) -> None:
    found = ovseg_batch.compare(finished, dense, dataset="scenes", root=few_scenes)
    assert found.images == 6 and found.truth is not None and found.truth.mean.change < 0
    assert found.verdict == " ".join(verdicts(found.masks, found.truth))
    assert record(found.masks, found.truth)["images"] == found.masks.images
    with pytest.raises(UsageError, match="truth= or dataset="):
        ovseg_batch.compare(finished, dense, dataset="scenes")
