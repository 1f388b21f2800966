"""`doctor` as a command: devices and the trial. Every failure is found, and nothing is left behind."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ovseg_batch.doctor import gpus
from ovseg_batch.doctor.sample import spread, write_sample
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.settings import RunConfig
from ovseg_batch.units import size
from tests.conftest import LABELS, Command
from tests.harness.job import with_embedded_models
from tests.support.diagnosis import ROOT, THREADS, everything, failures, report

# ---- the whole command


def test_this_machine_with_the_embedded_models(tmp_path: Path, command: Command) -> None:
    done = command("doctor", "-o", tmp_path / "new" / "run", *THREADS)
    assert done.returncode == 0, done.stdout
    named = {line[8:26].strip() for line in done.stdout.splitlines() if line[:8].strip() in ("ok", "warning", "failed")}
    assert named >= {"python", "packages", "torch", "device", "cores", "memory", "workdir", "fsync", "locks"}
    assert named >= {"hard links", "clip weights", "sam weights", "settings", "space"}
    assert f"torch {torch.__version__}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("OK")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow("a trial measures what a run will cost, and leaves nothing behind")
def test_a_trial_measures_every_stage_and_leaves_nothing(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    before = everything(few_scenes)
    arguments = (few_scenes / "images", "--labels", LABELS, "-o", tmp_path / "run", "--images", 3)
    checks, trial = report(command, *arguments, "--set", "edit.mode=cutout", code=0)
    assert everything(few_scenes) == before and list(tmp_path.iterdir()) == []
    assert checks["input"]["found"] == "6 images." and checks["trial"]["status"] == "ok"
    assert [stage["name"] for stage in trial["stages"]] == ["dense", "refine", "edit"]
    assert (trial["images"], trial["warm_up"], trial["listed"]) == (3, 2, 6)
    for stage in trial["stages"]:
        assert stage["milliseconds"] > 0 and stage["written"] > 0
        assert stage["memory"] > 50e6  # torch alone takes more
    if not torch.cuda.is_available():
        assert trial["device"] == "cpu"
    written = sum(stage["written"] for stage in trial["stages"])
    assert trial["written"] > written  # annotations.json comes on top
    assert trial["bytes"] == pytest.approx(6 * trial["written"], abs=6)
    assert f"the run takes about {size(trial['bytes'])}" in checks["space"]["found"]


def test_a_trial_lists_failed_images_and_does_not_touch_the_workdir(
    few_scenes: Path, finished: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(few_scenes / "images", tmp_path / "images")
    first, *_ = sorted((tmp_path / "images").iterdir())
    first.write_bytes(first.read_bytes()[:200])
    shutil.copytree(finished, tmp_path / "run")
    before = everything(tmp_path)
    done = command("doctor", tmp_path / "images", "--labels", LABELS, "-o", tmp_path / "run", "--images", 4, *THREADS)
    assert done.returncode == 0, done.stdout
    assert f"failed: {first.name}: dense: truncated: " in done.stdout
    assert "1 of 6 images failed" in done.stdout
    assert everything(tmp_path) == before
    table = [line.split() for line in done.stdout.splitlines() if line.startswith(("dense ", "refine "))]
    assert [line[0] for line in table] == ["dense", "refine"] and all(float(line[1]) > 0 for line in table)
    assert "6 images: about " in done.stdout


def test_a_folder_of_broken_images_fails_the_trial(tmp_path: Path, command: Command) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_text("no image")
    checks, trial = report(command, tmp_path / "images", "--labels", LABELS, "-o", tmp_path / "run", code=1)
    assert failures(checks) == {"trial"} and "2 of " in checks["trial"]["found"]
    assert {failure["code"] for failure in trial["failures"]} == {"not_an_image"}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--labels", "zebra crossing"), "does not know the label 'zebra crossing'"),
        ((), "No labels."),
    ],
)
def test_a_trial_needs_labels_that_the_model_knows(
    arguments: tuple[str, ...], found: str, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    checks, trial = report(command, few_scenes / "images", *arguments, "-o", tmp_path / "run", code=1)
    assert trial is None and failures(checks) <= {"trial", "settings"}
    assert found in (checks["settings"]["found"] + checks["trial"]["found"])


def test_an_input_that_is_not_there(tmp_path: Path, command: Command) -> None:
    checks, trial = report(command, tmp_path / "nothing", "--labels", LABELS, "-o", tmp_path / "run", code=1)
    assert failures(checks) == {"trial"} and trial is None
    assert str(tmp_path / "nothing") in checks["trial"]["found"]


def test_a_preset_that_is_not_there(command: Command) -> None:
    done = command("doctor", "-c", "promted")
    assert done.returncode == 2 and "Did you mean 'prompted'?" in done.stderr and done.stdout == ""


@pytest.mark.slow("a trial measures what a run will cost, and leaves nothing behind")
def test_sigterm_during_the_trial_leaves_nothing(few_scenes: Path, tmp_path: Path) -> None:
    arguments = ["doctor", few_scenes / "images", "--labels", LABELS, "-o", tmp_path / "run", *THREADS]
    process = subprocess.Popen(
        [sys.executable, "-m", "ovseg_batch", *with_embedded_models(arguments)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".ovseg-doctor.*.tmp/run/stages/dense-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert b"All temporary files were deleted" in errors and list(tmp_path.iterdir()) == []


# ---- devices


def test_a_gpu_that_is_not_there(tmp_path: Path, command: Command) -> None:
    checks, _ = report(command, "--device", "cuda:99", "-o", tmp_path, code=1)
    assert failures(checks) == {"device"}
    assert "cuda:99" in checks["device"]["found"] and "--device" in checks["device"]["next"]


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "mps", "", "cuda:99"])
def test_words_that_are_no_device(device: str) -> None:
    found = gpus.Gpus({"count": 0, "reason": "", "cuda": "", "hip": "", "driver_cuda": 0}, (), gpus.Driver())
    [check, *_] = gpus.check_gpus(found, RunConfig(device=device))
    assert check.status == "failed" and repr(device) in check.found and "--device" in check.next
    assert gpus.used_gpus(found, device) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu(tmp_path: Path, command: Command) -> None:
    required, _ = report(command, "--set", "run.device=cuda", "-o", tmp_path, code=1)
    assert failures(required) == {"device"} and "PyTorch finds 0 GPUs" in required["device"]["found"]
    left_open, _ = report(command, "-o", tmp_path, code=0)
    assert left_open["device"]["status"] == "warning" and "uses the CPU" in left_open["device"]["found"]


def on_emulated_gpus(workdir: Path, code: int, *arguments: str, **environment: str) -> tuple[dict[str, Any], Any]:
    """The checks by name and the trial, on the emulated GPUs that the environment describes."""
    path = str(ROOT / "tests" / "support" / "emulated_gpu")
    command = [
        sys.executable,
        "-m",
        "ovseg_batch",
        "doctor",
        "-c",
        "demo",
        "--json",
        "-o",
        str(workdir),
        *THREADS,
        *arguments,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **environment}
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    found = json.loads(done.stdout)
    return {check["name"]: check for check in found["checks"]}, found["trial"]


def test_a_gpu_that_fails_and_one_without_bf16(tmp_path: Path) -> None:
    checks, _ = on_emulated_gpus(
        tmp_path, 0, EMULATED_GPUS="2", EMULATED_FAULTS="unusable#0", EMULATED_CAPABILITY="9.0,7.5"
    )
    assert checks["device"]["status"] == "ok" and "runs on GPU 1 in fp16" in checks["device"]["found"]
    assert checks["gpu 0"]["status"] == "warning" and "does not compute" in checks["gpu 0"]["found"]
    assert "CUDA_VISIBLE_DEVICES" in checks["gpu 0"]["next"]
    assert checks["gpu 1"]["status"] == "warning" and "no bf16 in hardware" in checks["gpu 1"]["found"]
    assert "compute capability 7.5" in checks["gpu 1"]["found"] and "fp16" in checks["gpu 1"]["next"]


def test_no_gpu_that_computes(tmp_path: Path) -> None:
    checks, _ = on_emulated_gpus(tmp_path, 1, EMULATED_GPUS="1", EMULATED_FAULTS="unusable")
    assert failures(checks) == {"device", "gpu 0"} and "none of its GPUs works" in checks["device"]["found"]


@pytest.mark.slow("a trial measures what a run will cost, and leaves nothing behind")
def test_a_trial_on_a_gpu(few_scenes: Path, tmp_path: Path) -> None:
    """It runs on the GPU that the settings name, and measures its memory."""
    arguments = (str(few_scenes / "images"), "--labels", LABELS, "--images", "1", "--set", "refine.max_points=2")
    _, trial = on_emulated_gpus(tmp_path, 0, *arguments, "--device", "cuda:1", EMULATED_GPUS="2")
    assert trial["device"] == "cuda:1"
    assert all(stage["gpu_memory"] > 1e6 for stage in trial["stages"])
    assert list(tmp_path.iterdir()) == []


# ---- the sample


def test_a_sample_is_spread_over_the_list(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for k in range(100):
        (images / f"{k:03}.png").write_bytes(b"x")
    build_manifest([str(images)], tmp_path / "all.parquet", 7)
    sample = write_sample(tmp_path / "all.parquet", tmp_path / "few.parquet", 8)
    few = Manifest.open(tmp_path / "few.parquet")
    assert (sample.warm_up, sample.timed, sample.listed, few.shards, few.rows) == (2, 8, 100, 2, 10)
    timed = [int(Path(row.path).stem) for row in few.read_shard(1)]
    assert timed[0] == 0 and timed[-1] == 99 and timed == sorted(set(timed))
    assert max(b - a for a, b in itertools.pairwise(timed)) <= 25
    assert {row.path for row in few.read_shard(0)}.isdisjoint(row.path for row in few.read_shard(1))


def test_a_list_of_one_image_is_warmed_up_with_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "only.png").write_bytes(b"x")
    build_manifest([str(tmp_path / "images")], tmp_path / "all.parquet", 256)
    sample = write_sample(tmp_path / "all.parquet", tmp_path / "few.parquet", 8)
    assert (sample.warm_up, sample.timed, sample.listed) == (1, 1, 1)
    few = Manifest.open(tmp_path / "few.parquet")
    assert [row.key for shard in (0, 1) for row in few.read_shard(shard)] == ["warm-up/only.png", "only.png"]


def test_spread() -> None:
    assert spread(3, 8) == [0, 1, 2] and spread(10, 1) == [0] and spread(11, 3) == [0, 5, 10]
    assert len(set(spread(1000, 10))) == 10
