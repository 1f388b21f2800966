"""A stage that the tests add runs through every command, with three entries in tables and no other change."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ovseg_batch
from ovseg_batch import scenes
from tests.conftest import LABELS, SMALL, Command, data_files
from tests.harness.job import start_function
from tests.support import toy_stage

DISCS = ("--set", "method=discs", "--workers", "0", *SMALL)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for table, key, value in toy_stage.ENTRIES:
        monkeypatch.setitem(table, key, value)


@pytest.fixture
def workdir(few_scenes: Path, tmp_path: Path, command: Command) -> Path:
    """A finished run with cut-outs."""
    workdir = tmp_path / "run"
    edit = ("--edit", "cutout", "--keep", "cat")
    done = command("run", few_scenes / "images", "-o", workdir, "--labels", LABELS, *edit, *DISCS)
    assert done.returncode == 0, done.stderr
    return workdir


def test_masks_edits_exports_report_and_evaluation_come_from_the_stage(
    workdir: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    content = json.loads((workdir / "annotations.json").read_bytes())
    assert len(content["annotations"]) == 6 * len(scenes.CLASSES)
    largest = max(content["annotations"], key=lambda one: one["bbox"][3])
    assert largest["category_id"] == max(one["id"] for one in content["categories"])
    [name, *_] = sorted(path.name for path in (workdir / "edited").iterdir())
    alpha = np.asarray(Image.open(workdir / "edited" / name))[..., 3]
    assert 0 < (alpha > 0).mean() < 0.5
    for form in ("coco", "semantic", "panoptic"):
        assert command("export", workdir, "-f", form, "-o", tmp_path / form).returncode == 0
    classes = np.asarray(Image.open(next((tmp_path / "semantic").rglob("*.png"))))
    assert classes[classes.shape[0] // 2, classes.shape[1] // 2] == 0, "the smallest disc is painted last"
    assert command("report", workdir, "-o", tmp_path / "report").returncode == 0
    scored = command("eval", workdir, "--dataset", "scenes", "--root", few_scenes, "--json")
    assert scored.returncode == 0 and 0 < json.loads(scored.stdout)["mIoU"] < 0.5, scored.stderr
    assert command("verify", workdir).returncode == 0
    assert command("status", workdir).stdout.count("discs") == 1


def test_a_killed_run_resumes_with_the_same_bytes(workdir: Path, few_scenes: Path, tmp_path: Path, cache: Path) -> None:
    other = tmp_path / "other"
    arguments = ["run", str(few_scenes / "images"), "-o", str(other), "-c", "demo", "--labels", LABELS]
    arguments += ["--edit", "cutout", "--keep", "cat", *DISCS]

    def ended(failpoints: str) -> int:
        environment = {"OVSEG_CACHE": str(cache), "OVSEG_FAILPOINTS": failpoints}
        log = tmp_path / f"log{failpoints}"
        return start_function(toy_stage.run_command, (arguments,), environment, log).wait(120).code

    assert ended("discs.commit:2") == -signal.SIGKILL
    assert ended("") == 0
    assert data_files(other) == data_files(workdir)


def test_other_words_are_queried_without_the_images(
    workdir: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    done = command("query", workdir, "-o", tmp_path / "answer", "--labels", "cat; sky")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "answer" / "annotations.json").read_bytes())
    assert len(content["annotations"]) == 2 * 6
    assert not list((tmp_path / "answer" / "stages").glob("dense*"))


@pytest.mark.filterwarnings("ignore:.*embedded demo weights")
@pytest.mark.parametrize("paint", ["exclusive", "overlapping"])
def test_python_gets_the_masks_whole_or_cut(paint: str, few_scenes: Path) -> None:
    pixels = np.asarray(Image.open(next((few_scenes / "images").iterdir())).convert("RGB"))
    settings = {"method": "discs", "paint": paint, "background": "none"}
    found = ovseg_batch.segment(pixels, ["cat", "ball"], config="demo", settings=settings)
    small, large = (toy_stage.disc(pixels.shape[:2], radius) for radius in (5, 10))
    mask_of = {mask.label: mask.array for mask in found.masks}
    assert np.array_equal(mask_of["cat"], small)
    assert np.array_equal(mask_of["ball"], large if paint == "overlapping" else large & ~small)
    assert np.array_equal(found.label_map(["cat", "ball"]), np.where(small, 0, np.where(large, 1, -1)))


def test_an_unknown_method_is_refused_with_those_that_exist(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    done = command("run", few_scenes / "images", "-o", tmp_path / "run", "--labels", "cat", "--set", "method=disc")
    assert done.returncode == 2
    assert (
        "method: there is no 'disc'. Did you mean 'discs'? Methods: dense, proposals, detect, sam3, hybrid, discs."
        in done.stderr
    )
