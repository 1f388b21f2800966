"""Damaged and unusual images: none stops the run, and each has its own result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ovseg_batch.io.entries import plain
from tests.conftest import Command, run_arguments
from tests.harness.poison import answers, wrong
from tests.harness.unusual_images import picture, unusual_images


@pytest.mark.slow("an image can fail only its row")
def test_every_unusual_image_has_its_result(tmp_path: Path) -> None:
    code, found = answers(tmp_path)
    assert code == 3
    everyone = unusual_images()
    assert len(everyone) >= 60
    remarks = {image.name: wrong(tmp_path, image, found.get(image.name)) for image in everyone}
    assert {name: remark for name, remark in remarks.items() if remark} == {}
    coco = json.loads((tmp_path / "run" / "annotations.json").read_text())
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in coco["images"]}
    assert sizes == {plain(image.name): image.size for image in everyone if not image.code}


def test_files_that_vanish_or_change_while_the_run_goes_on(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    """Between the stages: one image goes, one is cropped, one becomes a text."""
    images = tmp_path / "images"
    shutil.copytree(few_scenes / "images", images)
    names = sorted(images.iterdir())
    arguments = run_arguments(images, tmp_path / "run")
    stopped = command(*arguments, OVSEG_FAILPOINTS="refine.row=ENOSPC")
    assert stopped.returncode == 1
    names[0].unlink()
    picture(50, 40).save(names[2])
    names[5].write_text("gone")
    done = command(*arguments)
    assert done.returncode == 3, done.stderr
    lines = [line.split(",") for line in (tmp_path / "run" / "failures.csv").read_text().splitlines()[1:]]
    assert [(row, stage, code) for row, _, stage, code, *_ in lines] == [
        ("0", "refine", "missing"),
        ("2", "refine", "changed"),
        ("5", "refine", "changed"),
    ]
    assert "has changed since an earlier stage read it" in lines[1][-1]
    shutil.copy(few_scenes / "images" / names[0].name, names[0])
    assert command("retry", tmp_path / "run").returncode == 3
    lines = [line.split(",") for line in (tmp_path / "run" / "failures.csv").read_text().splitlines()[1:]]
    assert [(row, stage, code) for row, _, stage, code, *_ in lines] == [("5", "dense", "not_an_image")]
    images = json.loads((tmp_path / "run" / "annotations.json").read_text())["images"]
    assert [(one["width"], one["height"]) for one in images if one["file_name"] == names[2].name] == [(50, 40)]
