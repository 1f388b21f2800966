"""`dense.cache: none`: dense and refine in one pass give the same masks, and keep nothing of what lies between."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ovseg_batch.stages import fused
from tests.conftest import LABELS, Command

SETTINGS = {
    "prompted": (),
    "no SAM2": ("--set", "refine.method=none"),
    "embeddings kept": ("--set", "sam.cache=embeddings"),
    "proposals": ("--set", "refine.method=automatic", "--set", "propose.points_per_side=4"),
    "regions": (
        *("--set", "dense.attention=corrclip", "--set", "refine.method=automatic"),
        *("--set", "propose.points_per_side=4"),
    ),
}


@pytest.fixture
def images(few_scenes: Path, tmp_path: Path) -> Path:
    images = Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))
    (images / "broken.png").write_bytes(b"no picture")
    return images


def run(command: Command, images: Path, workdir: Path, *more: str) -> None:
    done = command("run", images, "-o", workdir, "--labels", LABELS, "--workers", "0", *more)
    assert done.returncode == 3, done.stderr  # one image cannot be read


def outputs(workdir: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The masks, whatever stages they come from, and the failures."""
    masks = json.loads((workdir / "annotations.json").read_text())
    del masks["info"]
    with (workdir / "failures.csv").open() as file:
        return masks, [(one["key"], one["code"]) for one in csv.DictReader(file)]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("group", [{"GROUP_ROWS": 2}, {"GROUP_BYTES": 1}])
def test_the_masks_are_those_of_two_stages(
    images: Path,
    tmp_path: Path,
    settings: str,
    group: dict[str, int],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in group.items():
        monkeypatch.setattr(fused, name, value)
    for cache in ("logits", "none"):
        run(command, images, tmp_path / cache, "--set", f"dense.cache={cache}", *SETTINGS[settings])
    apart, together = outputs(tmp_path / "logits"), outputs(tmp_path / "none")
    assert apart == together
    assert {code for _, code in together[1]} == {"not_an_image"}
    assert not list((tmp_path / "none" / "stages").glob("dense-*"))


def test_it_resumes_and_refuses_a_query(images: Path, tmp_path: Path, command: Command) -> None:
    none = ("--set", "dense.cache=none", "--set", "manifest.shard_rows=2")
    done = command(*("run", images, "-o", tmp_path / "run", "--labels", LABELS, "--workers", "0", "--dry-run"), *none)
    assert "dense" not in [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    run(command, images, tmp_path / "run", *none)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.json") if path.name != "plan.json"}
    run(command, images, tmp_path / "run", *none)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    refused = command("query", tmp_path / "run", "--labels", "sky", "-o", tmp_path / "answer")
    assert refused.returncode == 2 and "dense.cache=features" in refused.stderr
