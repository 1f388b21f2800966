"""What a run shows while it computes: finished images, speed, time left, and log lines that do not break the bar."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from ovseg_batch.cli.base import set_up_logging
from ovseg_batch.config import load_config
from ovseg_batch.engine import local
from ovseg_batch.engine.flight import InFlight, describe_rest
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.runs import planning
from ovseg_batch.runs.meter import LINE_SECONDS, Meter
from ovseg_batch.types import Commit
from ovseg_batch.workdir.progress import pace
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command, run_arguments
from tests.harness.job import with_embedded_models


def commit(shard: int, rows: int, failed: dict[str, int] | None = None) -> Commit:
    failed = failed or {}
    return Commit("dense", "f", shard, rows, rows - sum(failed.values()), failed, (), 1, 1.0, "here")


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def meter_of(
    clock: Clock, before: list[Commit] | None = None, kept: dict[int, int] | None = None, rows: int = 40
) -> Meter:
    return Meter("dense", "stage 1 of 2", rows, rows, before or [], kept or {}, 1, False, clock=clock)


def test_images_in_flight_count_until_the_commit_replaces_them() -> None:
    meter = meter_of(Clock(), [commit(0, 10)])
    meter.follow(InFlight(1, 10, 4))
    meter.follow(InFlight(2, 10, 9))
    assert meter.done == 23
    meter.follow(InFlight(2, 10))  # its worker has died
    assert meter.done == 14
    meter.add(commit(1, 10))
    meter.follow(InFlight(2, 10, 10))
    assert meter.done == 30
    meter.add(commit(2, 10))
    assert meter.done == 30


def test_a_retry_counts_the_images_that_it_keeps_as_done() -> None:
    meter = meter_of(Clock(), [commit(0, 10)], kept={1: 8}, rows=20)
    assert meter.done == 18
    meter.follow(InFlight(1, 10, 2))
    assert meter.done == 20
    meter.add(commit(1, 10))
    assert meter.done == 20


def test_the_speed_is_of_what_this_command_computes_once_the_models_are_loaded() -> None:
    clock = Clock()
    meter = meter_of(clock, [commit(0, 30)])
    clock.now += 60
    meter.follow(InFlight(1, 10))
    clock.now += 2
    meter.follow(InFlight(1, 10, 4))
    assert meter.speed == 2.0
    meter.add(commit(1, 10))
    assert meter.speed == 5.0


@pytest.fixture
def stderr_lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capsys.readouterr().err.splitlines()


def test_lines_without_a_terminal(stderr_lines: Callable[[], list[str]]) -> None:
    set_up_logging("text", quiet=False)
    clock = Clock()
    with meter_of(clock, [commit(0, 20)]) as meter:
        assert stderr_lines() == ["dense: loading models and words"]
        clock.now += LINE_SECONDS
        meter.refresh()
        assert stderr_lines() == ["dense: 20 of 40 images, loading models and words, 30 s"]
        meter.follow(InFlight(1, 20))
        clock.now += LINE_SECONDS - 1
        meter.refresh()
        assert stderr_lines() == []
        clock.now += 1
        meter.follow(InFlight(1, 20, 15, 2))
        meter.refresh()
        meter.refresh()
        assert stderr_lines() == ["dense: 35 of 40 images, 0.5 images/s, 10 s left, 2 failed"]
        clock.now += 10
        meter.add(commit(1, 20, {"empty": 2}))
    assert stderr_lines() == ["dense: 40 of 40 images, 1 min 10 s, 0.5 images/s, 2 failed"]


def test_the_last_line_counts_committed_images_only(stderr_lines: Callable[[], list[str]]) -> None:
    set_up_logging("text", quiet=False)
    with meter_of(Clock()) as meter:
        meter.follow(InFlight(0, 20, 7))
    assert "dense: 0 of 40 images" in stderr_lines()[-1]


def test_quiet_lines_are_none(stderr_lines: Callable[[], list[str]]) -> None:
    set_up_logging("text", quiet=True)
    with meter_of(Clock()) as meter:
        meter.add(commit(0, 20))
    assert stderr_lines() == []


def test_a_log_line_stands_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("text", quiet=False)
    with Meter("dense", "stage 1 of 2", 40, 40, [], {}, 1, True) as meter:
        assert "dense, stage 1 of 2:   0%" in (shown := capsys.readouterr().err) and "loading models" in shown
        meter.follow(InFlight(0, 40, 20, 1))
        meter.refresh()
        shown = capsys.readouterr().err.rpartition("\r")[2]
        assert re.search(r"50%\|.*\| 20/40 images, [\d.e+]+ images/s, \d+ s left, 1 failed", shown)
        logging.getLogger("ovseg_batch.stages").warning("a line")
        shown = capsys.readouterr().err
        assert re.match(r"\r *\ra line\n\rdense, stage 1 of 2:  50%", shown)


def test_other_libraries_write_through_the_same_handler(stderr_lines: Callable[[], list[str]]) -> None:
    set_up_logging("json", quiet=False)
    other = logging.getLogger("other.library")
    other.setLevel(logging.DEBUG)
    other.info("dropped")
    other.warning("kept")
    warnings.warn("kept, too", UserWarning, stacklevel=1)
    lines = [json.loads(line) for line in stderr_lines()]
    assert [line["message"] for line in lines] == ["kept", "UserWarning: kept, too"]


def test_what_is_left_after_ctrl_c() -> None:
    assert describe_rest([]) == ""
    assert describe_rest([InFlight(0, 8)]) == "the images in flight (at most 8 images)"
    flights = [InFlight(0, 8, 4, 0, 20.0), InFlight(1, 8, 8, 0, 30.0)]
    assert describe_rest(flights) == "the images in flight (at most 4 images, about 20 s)"
    assert describe_rest([InFlight(0, 8, 7, 0, 7.0)]) == "the images in flight (at most 1 image, about 1 s)"


def test_pace() -> None:
    assert [pace(value) for value in (123.4, 1.0, 0.412, 0.0371)] == ["123.4", "1.0", "0.41", "0.037"]


# --- with real stages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_process", [True, False], ids=["in process", "worker"])
def test_every_finished_image_is_reported(in_process: bool, few_scenes: Path, tmp_path: Path) -> None:
    """A shard whose file is damaged: six images, one of which fails."""
    images = tmp_path / "images"
    shutil.copytree(few_scenes / "images", images)
    torn = sorted(images.iterdir())[3]
    torn.write_bytes(torn.read_bytes()[:1000])
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    build_manifest([str(images)], workdir.manifest, 6)
    flags = {"labels": "sky, tree", "run.device": "cpu"}
    config = planning.settle(load_config("demo", flags=flags, environment={}))
    [dense, _] = planning.plan(config, workdir, Manifest.open(workdir.manifest), workdir.manifest)
    dense.job.store.create(dense.inputs)
    flights: list[InFlight] = []
    [done] = local.run_stage(dense.job, [0], ["cpu"], in_process, flights.append)
    assert (done.rows, done.failed) == (6, {"truncated": 1})
    first, last = flights[0], flights[-1]
    assert (first.shard, first.rows, first.done, first.failed) == (0, 6, 0, 0)
    assert (last.done, last.failed) == (6, 1)
    assert [flight.done for flight in flights] == sorted(flight.done for flight in flights)


def test_images_of_a_worker_that_dies_are_counted_again_from_nothing(
    few_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSEG_FAILPOINTS", "decode-4=abort,dense.row+=delay")
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    build_manifest([str(few_scenes / "images")], workdir.manifest, 6)
    flags = {"labels": "sky, tree", "run.device": "cpu", "run.decode_threads": 1, "run.batch_size": 1}
    config = planning.settle(load_config("demo", flags=flags, environment={}))
    [dense, _] = planning.plan(config, workdir, Manifest.open(workdir.manifest), workdir.manifest)
    dense.job.store.create(dense.inputs)
    flights: list[InFlight] = []
    [done] = local.run_stage(dense.job, [0], ["cpu"], False, flights.append)
    assert done.failed == {"crashed": 1}
    begun = [k for k, flight in enumerate(flights) if flight.done == 0]
    assert len(begun) >= 3, "the shard begins once, and anew after each death"
    assert flights[-1].done == 5 and max(flight.done for flight in flights) <= 6


@pytest.mark.slow("every line of a JSON log is JSON, also when a worker dies")
def test_every_line_on_stderr_is_json(few_scenes: Path, tmp_path: Path) -> None:
    """Among them a worker's log lines, the death of one, and the lines of a stage."""
    arguments = with_embedded_models(run_arguments(few_scenes / "images", tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-m", "ovseg_batch", "--log-format", "json", *arguments],
        env={**os.environ, "OVSEG_FAILPOINTS": "decode-3=abort"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"warning", "info"} <= {line["level"] for line in lines}
    ends = [line for line in lines if line.get("event") == "stage"]
    assert [(line["stage"], line["done"], line["images"], line["failed"]) for line in ends] == [
        ("dense", 6, 6, 1),
        ("refine", 6, 6, 1),
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("run", "x", "-o", "y", "--bogus"), "No such option"),
        (("methodz",), "No such command"),
        (("run", "no-such-folder", "-o", "y", "--labels", "sky"), "no-such-folder"),
        (("status", "no-such-run"), "no-such-run"),
    ],
)
def test_errors_are_json_too(
    arguments: tuple[str, ...], message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("--log-format", "json", *arguments)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 2
    assert lines[-1]["level"] == "error" and message in lines[-1]["message"]
