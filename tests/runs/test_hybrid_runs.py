"""Runs of `method: hybrid` from end to end: killed, retried, queried, edited, exported, shown and evaluated."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ovseg_batch
from ovseg_batch import scenes
from tests.conftest import Command, data_files
from tests.harness.job import Running
from tests.support.tiny_owl import save_tiny_owl
from tests.support.tiny_sam3 import save_tiny_sam3

LABELS = "; ".join(scenes.CLASSES)
SETTINGS = {
    "method": "hybrid",
    "merge.things": "proposals",
    "merge.agreement": "true",
    "clip.model": "demo-token",
    "propose.points_per_side": "6",
    "propose.predicted_iou": "0.6",
    "propose.stability": "0.7",
    "dense.cache": "features",
    "sam.cache": "embeddings",
    "manifest.shard_rows": "2",
}


def arguments(images: Path, workdir: Path, labels: str = LABELS, edit: bool = True, **more: Any) -> tuple[object, ...]:
    flags = (part for key, value in {**SETTINGS, **more}.items() for part in ("--set", f"{key}={value}"))
    edits = ("--edit", "cutout", "--keep", "car") if edit else ()
    return ("run", images, "-o", workdir, "-c", "demo", "--labels", labels, "--workers", "0", *flags, *edits)


@pytest.fixture(scope="module")
def hybrid(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """An undisturbed run over the six scenes, three shards, with `edit.mode: cutout`."""
    workdir = tmp_path_factory.mktemp("hybrid") / "run"
    done = command(*arguments(few_scenes / "images", workdir))
    assert done.returncode == 0, done.stderr
    assert "thing, from proposals: tree" not in done.stderr and "stuff, from dense: sky, grass" in done.stderr
    return workdir


@pytest.fixture
def copied(hybrid: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hybrid, tmp_path / "copied", symlinks=True))


def written(workdir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((workdir / "annotations.json").read_text())["annotations"]
    return found


def stages(workdir: Path) -> dict[str, str]:
    return {one["name"]: one["folder"] for one in json.loads((workdir / "stages" / "plan.json").read_text())["stages"]}


@pytest.mark.slow("kill -9 at any moment loses at most the shard in flight")
@pytest.mark.parametrize("failpoint", ["merge.row:3", "merge.rename:3", "merge.commit:2"])
def test_a_killed_run_ends_like_an_undisturbed_one(
    failpoint: str, hybrid: Path, few_scenes: Path, tmp_path: Path, command: Command, start: Callable[..., Running]
) -> None:
    run = arguments(few_scenes / "images", tmp_path / "run")
    assert start(*run, OVSEG_FAILPOINTS=failpoint).wait().code == -signal.SIGKILL
    resumed = command(*run)
    assert resumed.returncode == 0 and "merge: computing shards 1-2" in resumed.stderr
    assert data_files(tmp_path / "run") == data_files(hybrid)


def test_a_damaged_image_fails_with_its_reason_and_is_retried(
    hybrid: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    images = Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))
    broken = sorted(images.iterdir())[2]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    assert command(*arguments(images, tmp_path / "run")).returncode == 3
    [failure] = (tmp_path / "run" / "failures.csv").read_text().splitlines()[1:]
    assert failure.startswith(f"2,{broken.name},") and "truncated" in failure
    broken.write_bytes(whole)
    assert command("retry", tmp_path / "run").returncode == 0
    assert command("verify", tmp_path / "run").returncode == 0
    assert written(tmp_path / "run") == written(hybrid)


def test_a_query_gives_the_masks_of_a_run(hybrid: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    few = "sky; cat; tree; person"
    done = command("query", hybrid, "-o", tmp_path / "answer", "--labels", few)
    assert done.returncode == 0, done.stderr
    done = command(*arguments(few_scenes / "images", tmp_path / "run", few, edit=False))
    assert done.returncode == 0, done.stderr
    answer, run = (w / "stages" / stages(w)["merge"] / "data" for w in (tmp_path / "answer", tmp_path / "run"))
    files = [path.relative_to(run) for path in sorted(run.rglob("*.parquet"))]
    assert len(files) == 3 and all((answer / one).read_bytes() == (run / one).read_bytes() for one in files)
    assert written(tmp_path / "answer") == written(tmp_path / "run") != []


def test_another_rule_computes_the_merge_alone(copied: Path, few_scenes: Path, command: Command) -> None:
    before = stages(copied)
    done = command(*arguments(few_scenes / "images", copied, LABELS, True, **{"merge.rule": "best"}))
    assert done.returncode == 0, done.stderr
    after = stages(copied)
    assert {name for name in before if before[name] != after[name]} == {"merge", "edit"}
    assert done.stderr.count(": 0 of 3 shards already committed") == 2


def test_the_methods_alone_use_what_the_hybrid_has_computed(copied: Path, few_scenes: Path, command: Command) -> None:
    for method in ("dense", "proposals"):
        done = command(*arguments(few_scenes / "images", copied, edit=False, method=method))
        assert done.returncode == 0 and " 0 of 3 shards already committed" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "kind", ["coco", "coco-polygon", "panoptic", "semantic", "yolo", "label-studio", "cvat", "masks"]
)
def test_every_format_takes_the_masks(kind: str, hybrid: Path, tmp_path: Path, command: Command) -> None:
    done = command("export", hybrid, "-f", kind, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_a_report_and_edited_images_are_written(hybrid: Path, tmp_path: Path, command: Command) -> None:
    done = command("report", hybrid, "-o", tmp_path / "report")
    assert done.returncode == 0 and "car" in (tmp_path / "report" / "index.html").read_text()
    assert all(Image.open(path).mode == "RGBA" for path in (hybrid / "edited").rglob("*.png"))
    assert command("status", hybrid).stdout.count("merge") == 1


def test_a_run_is_evaluated(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    run = arguments(few_scenes / "images", tmp_path / "run", "dataset:scenes", edit=False, **{"dense.cache": "logits"})
    done = command(*run)
    assert done.returncode == 0, done.stderr
    assert "thing, from proposals: tree, house, car" in done.stderr, "the data set's kinds come before COCO-Stuff's"
    done = command("eval", tmp_path / "run", "--dataset", "scenes", "--root", few_scenes, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["mIoU"] > 0.4, done.stderr


@pytest.mark.parametrize("things", ["detect", "sam3"])
def test_objects_of_each_method_are_merged_and_shown_in_python(things: str, few_scenes: Path, tmp_path: Path) -> None:
    """With tiny models, whose masks mean nothing."""
    tiny = {
        "detect": {"owl.model": f"local-dir:{save_tiny_owl(tmp_path / 'owl')}", "detect.boxes": 12},
        "sam3": {"sam3.model": f"local-dir:{save_tiny_sam3(tmp_path / 'sam3')}", "sam3.nms": 1, "sam3.contained": 1},
    }[things]
    pixels = np.asarray(Image.open(sorted((few_scenes / "images").iterdir())[0]).convert("RGB"))
    settings = {"method": "hybrid", "merge.things": things, **tiny}
    with pytest.warns(UserWarning, match="embedded demo weights"):
        found = ovseg_batch.segment(pixels, "car; grass; sky", config="demo", settings=settings)
    reasons = {(mask.label, mask.reason) for mask in found.masks}
    assert ("car", f"thing, from {things}") in reasons
    assert any(reason == "stuff, from dense" for _, reason in reasons)
    stuff = np.any([mask.array for mask in found.masks if mask.label != "car"], axis=0)
    things_drawn = np.any([mask.array for mask in found.masks if mask.label == "car"], axis=0)
    assert stuff.any() and not (stuff & things_drawn).any()
