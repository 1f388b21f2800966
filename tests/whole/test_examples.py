"""The programs in docs/examples run as their first lines describe."""

from __future__ import annotations

import runpy
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ovseg_batch

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
LABELS = "sky; grass; tree; ball"


@pytest.fixture(scope="module")
def photos(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes: enough for every line of the programs."""
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted((few_scenes / "images").iterdir())[:3]:
        shutil.copy(path, folder)
    return folder


def run_example(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program as `python docs/examples/NAME` does, in this process, with the embedded models."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--labels", LABELS, "-c", "demo"])
    monkeypatch.setenv("OVSEG_RUN__WORKERS", "0")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*embedded", category=UserWarning)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_annotate_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("annotate_folder.py", photos, tmp_path / "out", monkeypatch=monkeypatch)
    run = ovseg_batch.Run(tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert run.complete and [line.partition(":")[0] for line in lines] == [image.name for image in run]
    assert any(" sky" in line for line in lines)
    for image in run:
        assert Image.open(tmp_path / "out-overlays" / f"{image.name}.png").size == (image.width, image.height)


def test_cut_out_products(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("cut_out_products.py", photos, tmp_path / "out", monkeypatch=monkeypatch)
    with_masks = {image.name for image in ovseg_batch.Run(tmp_path / "out") if image.masks}
    cutouts = list((tmp_path / "out" / "edited").iterdir())
    assert with_masks and {path.name.replace(".jpg.png", ".jpg") for path in cutouts} == with_masks
    for path in cutouts:
        alpha = np.asarray(Image.open(path))[..., 3]
        assert alpha.min() == 0 and alpha.max() == 255
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"cut-outs: {tmp_path / 'out' / 'edited'}" and last.startswith("check by hand: ")


def test_pseudo_labels(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (photos, tmp_path / "out", "--steps", "40")
    run_example("pseudo_labels.py", *arguments, monkeypatch=monkeypatch)
    maps = [np.asarray(Image.open(path)) for path in (tmp_path / "out-labels").glob("*.png")]
    assert len(maps) == 3 and len(np.unique(np.concatenate([one.ravel() for one in maps]))) > 2
    last = float(capsys.readouterr().out.splitlines()[-1].removeprefix("last loss: "))
    assert last < np.log(5)  # of a network that has learned nothing: five classes, the background among them


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_listed(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    assert f"(examples/{path.name})" in (EXAMPLES.parent / "examples.md").read_text()
