"""Runs that are killed or interrupted: what is lost, what is computed again, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Command, data_files, run_arguments
from tests.harness.job import Running, with_embedded_models


@pytest.mark.slow("kill -9 at any moment loses at most the shard in flight")
@pytest.mark.parametrize(
    ("failpoint", "redone"),
    [
        ("dense.rename:5", "dense: computing shards 1-2"),  # between Parquet and NPZ
        ("refine.row:5", "refine: computing shards 2"),
        ("export.rename", ""),
    ],
)
def test_what_a_killed_run_does_again_is_logged(
    finished: Path,
    few_scenes: Path,
    tmp_path: Path,
    command: Command,
    start: Callable[..., Running],
    failpoint: str,
    redone: str,
) -> None:
    arguments = run_arguments(few_scenes / "images", tmp_path / "run")
    killed = start(*arguments, "--workers", "0", OVSEG_FAILPOINTS=failpoint).wait()
    assert killed.code == -signal.SIGKILL
    state = json.loads(command("status", tmp_path / "run", "--json").stdout)
    assert state["complete"] == (failpoint == "export.rename")
    resumed = command(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert redone in resumed.stderr
    assert "resuming with the manifest" in resumed.stderr
    assert data_files(tmp_path / "run") == data_files(finished)
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.slow("kill -9 at any moment loses at most the shard in flight")
def test_killed_from_outside(finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    """A real kill -9 while it works, at whatever moment that is."""
    arguments = [str(a) for a in run_arguments(few_scenes / "images", tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "ovseg_batch", *with_embedded_models(arguments)],
        env=os.environ,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("stages/dense-*/commits/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert command(*arguments).returncode == 0
    assert data_files(tmp_path / "run") == data_files(finished)


@pytest.mark.slow("the first Ctrl-C or SIGTERM finishes the shard, and the run ends with exit code 130")
def test_interrupted_finishes_its_shard_and_says_130(
    few_scenes: Path, tmp_path: Path, finished: Path, command: Command
) -> None:
    arguments = [str(a) for a in run_arguments(few_scenes / "images", tmp_path / "run")]
    slow = {**os.environ, "OVSEG_FAILPOINTS": "dense.row+=delay"}  # half a second for each image
    process = subprocess.Popen(
        [sys.executable, "-m", "ovseg_batch", *with_embedded_models(arguments)],
        env=slow,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("stages/dense-*/data/*/.*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert "the same command resumes" in stderr
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert command(*arguments).returncode == 0
    assert data_files(tmp_path / "run") == data_files(finished)


@pytest.mark.slow("the first Ctrl-C or SIGTERM finishes the shard, and the run ends with exit code 130")
def test_a_second_interrupt_stops_at_once(
    few_scenes: Path, tmp_path: Path, finished: Path, command: Command, start: Callable[..., Running]
) -> None:
    arguments = run_arguments(few_scenes / "images", tmp_path / "run")
    running = start(*arguments, OVSEG_FAILPOINTS="dense.row+=delay")  # half a second for each image
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("stages/dense-*/data/*/.*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for _ in range(2):
        os.kill(running.process.pid or 0, signal.SIGINT)
        time.sleep(0.1)
    ended = running.wait()
    assert ended.code == 130, ended.stderr
    assert not list((tmp_path / "run").glob("stages/dense-*/commits/*/*")), "it did not wait for the shard"
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert command(*arguments).returncode == 0
    assert data_files(tmp_path / "run") == data_files(finished)
