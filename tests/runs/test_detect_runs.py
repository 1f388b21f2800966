"""Runs of `method: detect` from end to end: killed, retried, edited, exported, shown and evaluated."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg_batch import scenes
from tests.conftest import Command, data_files
from tests.harness.job import Running
from tests.support.tiny_owl import save_tiny_owl

LABELS = ", ".join(scenes.CLASSES)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options for the preset with a tiny OWLv2."""
    settings = (
        f"owl.model=local-dir:{save_tiny_owl(tmp_path_factory.mktemp('owl'))}",
        *("sam.model=demo", "detect.boxes=12", "manifest.shard_rows=2"),
    )
    return "-c", "detect", *(flag for one in settings for flag in ("--set", one))


@pytest.fixture(scope="module")
def detected(
    models: tuple[str, ...], few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command
) -> Path:
    """An undisturbed run over the six scenes, three shards, with `edit.mode: cutout`."""
    workdir = tmp_path_factory.mktemp("detected") / "run"
    done = command(*arguments(models, few_scenes / "images", workdir))
    assert done.returncode == 0, done.stderr
    return workdir


def arguments(models: tuple[str, ...], images: Path, workdir: Path) -> tuple[object, ...]:
    edit = ("--edit", "cutout", "--keep", "car")
    return ("run", images, "-o", workdir, "--labels", LABELS, "--workers", "0", *models, *edit)


@pytest.mark.slow("kill -9 at any moment loses at most the shard in flight")
@pytest.mark.parametrize(
    ("failpoint", "redone"),
    [("detect.rename:5", "detect: computing shards 1-2"), ("classify.row:3", "classify: computing shards 1-2")],
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    models: tuple[str, ...],
    detected: Path,
    few_scenes: Path,
    tmp_path: Path,
    command: Command,
    start: Callable[..., Running],
    failpoint: str,
    redone: str,
) -> None:
    run = arguments(models, few_scenes / "images", tmp_path / "run")
    assert start(*run, OVSEG_FAILPOINTS=failpoint).wait().code == -signal.SIGKILL
    resumed = command(*run)
    assert resumed.returncode == 0 and redone in resumed.stderr
    assert data_files(tmp_path / "run") == data_files(detected)


@pytest.mark.slow("the same answer with one worker or many")
def test_two_workers_give_the_same(
    models: tuple[str, ...], detected: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    run = arguments(models, few_scenes / "images", tmp_path / "run")
    done = command(*run, "--workers", "2", "--set", "run.threads=1", "--set", "run.point_chunk=3")
    assert done.returncode == 0, done.stderr
    found, expected = (
        json.loads((w / "annotations.json").read_text())["annotations"] for w in (tmp_path / "run", detected)
    )
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-3) and one["category_id"] == other["category_id"]


def test_a_damaged_image_costs_its_row_and_is_retried(
    models: tuple[str, ...], detected: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    images = Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))
    broken = sorted(images.iterdir())[2]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    done = command(*arguments(models, images, tmp_path / "run"))
    assert done.returncode == 3
    [failure] = (tmp_path / "run" / "failures.csv").read_text().splitlines()[1:]
    assert failure.startswith(f"2,{broken.name},detect,truncated")
    broken.write_bytes(whole)
    assert command("retry", tmp_path / "run").returncode == 0
    for workdir in (tmp_path / "run", detected):
        assert command("verify", workdir).returncode == 0
    found, expected = ((w / "annotations.json").read_bytes() for w in (tmp_path / "run", detected))
    assert json.loads(found)["annotations"] == json.loads(expected)["annotations"]


@pytest.mark.parametrize(
    "kind", ["coco", "coco-polygon", "panoptic", "semantic", "yolo", "label-studio", "cvat", "masks"]
)
def test_every_format_takes_the_masks(kind: str, detected: Path, tmp_path: Path, command: Command) -> None:
    done = command("export", detected, "-f", kind, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_pixels_without_a_mask_are_background(detected: Path, tmp_path: Path, command: Command) -> None:
    """Words do not compete, and semantic maps have a background all the same."""
    assert command("export", detected, "-f", "semantic", "-o", tmp_path / "out").returncode == 0
    maps = [np.asarray(Image.open(path)) for path in (tmp_path / "out").rglob("*.png")]
    assert len(maps) == 6 and any((one == 0).any() for one in maps) and not any((one == 255).any() for one in maps)


def test_a_report_and_edited_images_are_written(detected: Path, tmp_path: Path, command: Command) -> None:
    done = command("report", detected, "-o", tmp_path / "report")
    assert done.returncode == 0 and "car" in (tmp_path / "report" / "index.html").read_text()
    masked = {one["image_id"] for one in json.loads((detected / "annotations.json").read_text())["annotations"]}
    edited = list((detected / "edited").rglob("*.png"))
    assert 0 < len(edited) <= len(masked)
    assert all(Image.open(path).mode == "RGBA" for path in edited)


def test_a_run_is_evaluated(models: tuple[str, ...], few_scenes: Path, tmp_path: Path, command: Command) -> None:
    run = (
        "run",
        few_scenes / "images",
        "-o",
        tmp_path / "run",
        "--labels",
        "dataset:scenes",
        "--workers",
        "0",
        *models,
    )
    assert command(*run).returncode == 0
    done = command("eval", tmp_path / "run", "--dataset", "scenes", "--root", few_scenes, "--json")
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads(done.stdout)["mIoU"] <= 1


def test_python_segments_an_image(models: tuple[str, ...], few_scenes: Path) -> None:
    import ovseg_batch

    settings = dict(one.split("=", 1) for one in models[3::2])
    first = sorted((few_scenes / "images").iterdir())[0]
    with pytest.warns(UserWarning, match="sam.model: embedded"):
        found = ovseg_batch.segment(Image.open(first), "car; sky", config="detect", settings=settings)
    assert {mask.label for mask in found.masks} == {"car", "sky"}
