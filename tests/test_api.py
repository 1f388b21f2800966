"""Runs from Python, and what is told while a stage runs."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS, Command, run_arguments
from PIL import Image
from pycocotools import mask as coco_mask

import ovseg_batch
from ovseg_batch import progress
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.meter import METRICS, Meter
from ovseg_batch.store import Workdir
from ovseg_batch.types import Commit

NAMES = LABELS.split(", ")


@pytest.fixture(scope="module")
def run(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> ovseg_batch.Run:
    workdir = tmp_path_factory.mktemp("api") / "run"
    return ovseg_batch.run(few_scenes / "images", NAMES, workdir, settings={"manifest.shard_rows": 2}, progress=False)


def test_a_run_gives_masks_as_arrays(run: ovseg_batch.Run) -> None:
    assert run.complete and len(run) == 6 and run.labels == tuple(NAMES) and run.failures == []
    images = list(run)
    coco = run.to_coco()
    assert [image.name for image in images] == [entry["file_name"] for entry in coco["images"]]
    masks = [mask for image in images for mask in image.masks]
    assert len(masks) == len(coco["annotations"])
    for mask, entry in zip(masks, coco["annotations"], strict=True):
        assert mask.array.dtype == bool and mask.array.sum() == mask.area == entry["area"]
        assert np.array_equal(mask.array, coco_mask.decode(entry["segmentation"]).astype(bool))
        assert (mask.score, mask.confidence) == pytest.approx((entry["score"], entry["confidence"]), abs=1e-6)
        assert mask.label == NAMES[entry["category_id"] - 1]
    for image in images:
        own = [mask.confidence for mask in image.masks]
        assert image.confidence == min(own) and image.unsure == sum(value < 0.5 for value in own)


def test_a_run_says_how_many_images_have_each_label(run: ovseg_batch.Run) -> None:
    counted = dict.fromkeys(NAMES, 0)
    for image in run:
        for label in {mask.label for mask in image.masks}:
            counted[label] += 1
    assert run.label_images == counted and list(run.label_images) == NAMES
    assert 0 in counted.values() and max(counted.values()) > 1


def test_an_image_can_be_looked_at(run: ovseg_batch.Run) -> None:
    image = run[next(iter(run)).name]
    assert image.read().shape == (image.height, image.width, 3)
    shown = Image.open(io.BytesIO(image._repr_png_()))
    assert shown.size == (image.width, image.height)
    labels = image.label_map(NAMES)
    for mask in image.masks:
        assert (labels[mask.array] == NAMES.index(mask.label)).all()
        inside = np.asarray(shown)[mask.array].astype(int)
        assert np.abs(inside - image.read()[mask.array]).mean() > 5
    with pytest.raises(KeyError):
        run["nowhere.png"]


def test_the_same_call_gives_back_what_is_there(run: ovseg_batch.Run, few_scenes: Path) -> None:
    commits = sorted((run.workdir / "stages").glob("*/commits/*/*.json"))
    before = [path.stat().st_mtime_ns for path in commits]
    again = ovseg_batch.run(
        str(few_scenes / "images"), LABELS, run.workdir, settings={"manifest.shard_rows": 2}, progress=False
    )
    assert [path.stat().st_mtime_ns for path in commits] == before and len(again) == 6
    assert "6 images of 20 labels, complete" in repr(again)


def test_a_run_in_this_process_restores_the_number_of_threads(few_scenes: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    settings = {"run.threads": before + 1, "run.workers": 0, "refine.method": "none"}
    ovseg_batch.run(few_scenes / "images", NAMES, tmp_path / "run", settings=settings, progress=False)
    assert torch.get_num_threads() == before


def test_exports_and_reports_from_python(run: ovseg_batch.Run, tmp_path: Path) -> None:
    done = run.export("csv", tmp_path / "masks.csv")
    assert done.complete and done.paths == [tmp_path / "masks.csv"]
    with pytest.raises(UsageError, match="Did you mean 'panoptic'"):
        run.export("panoptics", tmp_path / "x")
    assert run.report(tmp_path / "report").is_file()


def test_what_cannot_be_is_said(run: ovseg_batch.Run, few_scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a workdir"):
        ovseg_batch.Run(tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'vote'"):
        ovseg_batch.run(few_scenes / "images", "sky", tmp_path / "run", settings={"refine.votee": 1})
    assert not (tmp_path / "run").exists()
    commit = next((run.workdir / "stages").glob("refine-*/commits/000/000001.json"))
    content = commit.read_bytes()
    commit.unlink()
    try:
        half = ovseg_batch.Run(run.workdir)
        assert not half.complete and len(half) == len(list(half)) == 4
        assert half.label_images is None
        with pytest.raises(OvsegError, match="not finished"):
            half.to_coco()
    finally:
        commit.write_bytes(content)


def test_a_notebook_gets_a_bar(few_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ovseg_batch.run(few_scenes / "images", "sky; tree", tmp_path / "run")
    said = capsys.readouterr().err
    assert re.search(r"dense: 100%.*6/6.*img/s.*busy=\d+%.*failed=0", said)


def test_importing_the_package_is_quick() -> None:
    code = "import sys, ovseg_batch; assert 'torch' not in sys.modules; ovseg_batch.run; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- while it runs ---------------------------------------------------------------------------------------------------


def commit(shard: int, rows: int, failed: dict[str, int], seconds: float) -> Commit:
    return Commit("dense", "f", shard, rows, rows - sum(failed.values()), failed, (), 1, seconds, "here")


def test_the_metrics_file_is_what_prometheus_reads(tmp_path: Path) -> None:
    now = [100.0]
    path = tmp_path / "ovseg.prom"
    before = [commit(0, 10, {"empty": 1}, 99.0)]
    with Meter("dense", 40, before, 2, False, path, clock=lambda: now[0]) as meter:
        now[0] += 5.0
        meter.add(commit(1, 10, {"empty": 1, "truncated": 2}, 4.0))
        now[0] += 5.0
        meter.add(commit(2, 10, {}, 6.0))
    lines = path.read_text().splitlines()
    for name in METRICS:
        assert f"# TYPE {name} gauge" in lines and any(line.startswith(f"# HELP {name} ") for line in lines)
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['ovseg_images{stage="dense"}'] == "40" and values['ovseg_images_done{stage="dense"}'] == "30"
    assert values['ovseg_images_failed{stage="dense",code="empty"}'] == "2"
    assert values['ovseg_images_failed{stage="dense",code="truncated"}'] == "2"
    assert values['ovseg_images_per_second{stage="dense"}'] == "2.0"  # what was there before is not counted
    assert values['ovseg_busy_ratio{stage="dense"}'] == "0.5"
    assert all(re.fullmatch(r'[a-z_]+\{([a-z]+="[^"]*",?)+\} \d+(\.\d+)?', line) for line in lines if line[0] != "#")


def test_a_metrics_file_that_cannot_be_written_ends_no_run(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("no folder")
    metrics = tmp_path / "file" / "m.prom"
    arguments = run_arguments(few_scenes / "images", tmp_path / "run", "--set", f"run.metrics_file={metrics}")
    done = command(*arguments)
    assert done.returncode == 0
    assert done.stderr.count("cannot be written any more") == 2  # once a stage


def test_json_lines_tell_every_shard(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    metrics = tmp_path / "m.prom"
    arguments = run_arguments(few_scenes / "images", tmp_path / "run", "--set", f"run.metrics_file={metrics}")
    done = command("--log-format", "json", *arguments)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    shards = [line for line in lines if line.get("event") == "shard"]
    assert [(line["stage"], line["done"]) for line in shards if line["stage"] == "refine"] == [
        ("refine", 2),
        ("refine", 4),
        ("refine", 6),
    ]
    assert all(
        line["images_per_second"] > 0 and line["eta_seconds"] >= 0 and line["time"][10] == "T" for line in shards
    )
    assert 'ovseg_images_done{stage="refine"} 6' in metrics.read_text()
    plain = command(*run_arguments(few_scenes / "images", tmp_path / "plain"))
    assert "shard 0" not in plain.stderr


def test_status_watches_until_all_is_done(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    workdir = tmp_path / "run"
    assert command(*run_arguments(few_scenes / "images", workdir)).returncode == 0
    path = next((workdir / "stages").glob("refine-*/commits/000/000002.json"))
    second = path.with_name("000001.json")
    contents = {one: one.read_bytes() for one in (path, second)}
    for one in contents:
        one.unlink()
    states = progress.watch(Workdir(workdir), every=0.01)
    first = next(states)
    assert not first["complete"] and "images_per_second" not in first["stages"][1]
    second.write_bytes(contents[second])
    moved = next(states)
    assert moved["stages"][1]["images_per_second"] > 0 and moved["stages"][1]["eta_seconds"] > 0
    path.write_bytes(contents[path])
    assert [state["complete"] for state in states] == [True]
    shown = command("status", workdir, "--watch", "--every", "0.1")
    assert shown.returncode == 0 and "complete" in shown.stdout


def test_a_reader_that_leaves_is_no_error() -> None:
    """`ovseg-batch methods | head -n 1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "ovseg_batch", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_durations() -> None:
    said = [progress.duration(seconds) for seconds in (0.4, 61, 3599.6, 7384)]
    assert said == ["0 s", "1 min 01 s", "1 h 00 min", "2 h 03 min"]
