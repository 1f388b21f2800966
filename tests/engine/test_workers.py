"""Worker processes that die, images that kill them, failed images tried again, and runs done in parts."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ovseg_batch.config import load_config
from ovseg_batch.runs.cautions import cautions
from tests.conftest import Command, data_files, run_arguments
from tests.harness.job import Running


def failures(workdir: Path) -> list[tuple[str, str, str]]:
    with (workdir / "failures.csv").open(newline="") as file:
        return [(line["row"], line["stage"], line["code"]) for line in csv.DictReader(file)]


@pytest.mark.slow("a worker that dies costs at most one image, and no result")
def test_an_image_that_kills_its_decoder_costs_one_row(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    """Rows 2 and 3 are one shard; the process aborts whenever row 3 is decoded."""
    workdir = tmp_path / "run"
    done = command(*run_arguments(few_scenes / "images", workdir), OVSEG_FAILPOINTS="decode-3=abort")
    assert done.returncode == 3, done.stderr
    assert failures(workdir) == [("3", "dense", "crashed")]
    assert "dense: a worker died in shard 1 at row 3 (it died of SIGABRT)" in done.stderr
    ours, theirs = data_files(workdir), data_files(finished)
    others = [name for name in theirs if "/data/" in name and "000001" not in name]
    assert len(others) == 6
    assert {name: ours[name] for name in others} == {name: theirs[name] for name in others}


def test_a_script_may_start_a_run_outside_of_any_guard(few_scenes: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from ovseg_batch.runs import pipeline\n"
        "from ovseg_batch.config import load_config\n"
        "from ovseg_batch.workdir.store import Workdir\n"
        f"images, run = {str(few_scenes / 'images')!r}, Path({str(tmp_path / 'run')!r})\n"
        "outcome = pipeline.run([images], Workdir(run), load_config('demo', flags={'labels': 'sky, grass'}))\n"
        "print(outcome.images)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr


@pytest.mark.slow("a worker that dies costs at most one image, and no result")
def test_a_worker_that_dies_by_chance_costs_nothing(
    finished: Path, few_scenes: Path, tmp_path: Path, start: Callable[..., Running], command: Command
) -> None:
    workdir = tmp_path / "run"
    running = start(*run_arguments(few_scenes / "images", workdir), OVSEG_FAILPOINTS="dense.data:2+=delay")
    deadline = time.monotonic() + 300
    while True:
        assert time.monotonic() < deadline
        drafts = [path.name for path in workdir.glob("stages/dense-*/data/*/.*.tmp") if "000001" in path.name]
        if drafts:
            break
        time.sleep(0.01)
    [number] = re.findall(r"@(\d+)\.tmp$", drafts[0])
    worker = int(number)
    assert worker != running.process.pid
    os.kill(worker, signal.SIGKILL)
    ended = running.wait()
    assert ended.code == 0, ended.stderr
    assert (
        "a worker died in shard 1: it was killed, most likely because memory ran out; another takes over"
        in ended.stderr
    )
    assert command(*run_arguments(few_scenes / "images", workdir)).returncode == 0
    assert data_files(workdir) == data_files(finished)


@pytest.mark.slow("a worker that dies costs at most one image, and no result")
def test_a_shard_that_kills_workers_without_one_image_to_blame_ends_the_run(
    few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run"), OVSEG_FAILPOINTS="dense.data=kill")
    assert done.returncode == 1
    assert "no single image is the cause" in done.stderr and "run.batch_size" in done.stderr


def test_an_error_in_a_worker_ends_the_run_with_its_sentence(
    few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run"), OVSEG_FAILPOINTS="refine.write=ENOSPC")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "give the same command again" in done.stderr
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.fixture
def broken(few_scenes: Path, tmp_path: Path, command: Command) -> tuple[Path, Path]:
    """A folder whose fourth image is half a file, and the run over it."""
    images = tmp_path / "images"
    shutil.copytree(few_scenes / "images", images)
    torn = sorted(images.iterdir())[3]
    torn.write_bytes(torn.read_bytes()[:1000])
    done = command(*run_arguments(images, tmp_path / "run"))
    assert done.returncode == 3
    return images, tmp_path / "run"


@pytest.mark.slow("failed images are retried alone")
def test_retry_computes_the_failed_images_and_no_others(
    broken: tuple[Path, Path], few_scenes: Path, finished: Path, command: Command
) -> None:
    images, workdir = broken
    assert failures(workdir) == [("3", "dense", "truncated")]
    assert command("retry", workdir).returncode == 3, "nothing has changed yet"
    torn = sorted(images.iterdir())[3]
    shutil.copyfile(few_scenes / "images" / torn.name, torn)
    # Every other image would now abort the process that opens it.
    traps = ",".join(f"decode-{row}=abort" for row in (0, 1, 2, 4, 5))
    done = command("retry", workdir, OVSEG_FAILPOINTS=traps)
    assert done.returncode == 0, done.stderr
    assert failures(workdir) == []
    ours, theirs = ((folder / "annotations.json").read_bytes() for folder in (workdir, finished))
    assert ours.split(b'"images"')[1] == theirs.split(b'"images"')[1]
    assert command("verify", workdir).returncode == 0


@pytest.mark.slow("failed images are retried alone")
def test_a_retry_killed_anywhere_loses_nothing(
    broken: tuple[Path, Path], few_scenes: Path, command: Command, start: Callable[..., Running]
) -> None:
    images, workdir = broken
    torn = sorted(images.iterdir())[3]
    shutil.copyfile(few_scenes / "images" / torn.name, torn)
    assert start("retry", workdir, OVSEG_FAILPOINTS="dense.rename:2+=kill").wait().code == 1
    done = command("retry", workdir)
    assert done.returncode == 0, done.stderr
    assert failures(workdir) == []


@pytest.mark.slow("one worker or many, and any size of a shard, give the same bytes")
def test_parts_of_a_run_add_up_to_the_whole(finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    arguments = run_arguments(few_scenes / "images", tmp_path / "run")
    first = command(*arguments, "--shards", "0/2")
    assert first.returncode == 0 and "1 shard is left for the other parts" in first.stdout, first.stdout
    assert not (tmp_path / "run" / "annotations.json").exists()
    second = command(*arguments, "--shards", "1/2")
    assert second.returncode == 0 and "annotations.json" in second.stdout
    assert data_files(tmp_path / "run") == data_files(finished)


@pytest.mark.parametrize("text", ["2/2", "x/2", "1", "-1/2", "/"])
def test_a_part_that_is_none_is_a_usage_error(text: str, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run"), "--shards", text)
    assert done.returncode == 2
    assert "I/N" in done.stderr


@pytest.mark.slow("one worker or many, and any size of a shard, give the same bytes")
def test_two_runs_at_once_on_one_workdir(
    finished: Path, few_scenes: Path, tmp_path: Path, start: Callable[..., Running]
) -> None:
    children = [start(*run_arguments(few_scenes / "images", tmp_path / "run")) for _ in range(2)]
    for ended in [child.wait() for child in children]:
        assert ended.code == 0, ended.stderr
    assert data_files(tmp_path / "run") == data_files(finished)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_workers_that_would_share_cores_are_warned_of() -> None:
    cores = len(os.sched_getaffinity(0))

    def warnings(**run: int) -> list[str]:
        flags = {"labels": "sky", "run.device": "cpu", **{f"run.{name}": value for name, value in run.items()}}
        return [line for line in cautions(load_config("demo", flags=flags, environment={})) if "threads" in line]

    assert warnings() == warnings(workers=1) == warnings(workers=0) == warnings(workers=cores, threads=1) == []
    [line] = warnings(workers=2)
    assert f"run.threads={max(1, cores // 2)}" in line


def test_outputs_that_another_run_wrote_while_retry_computed_are_written_again(
    broken: tuple[Path, Path], few_scenes: Path, command: Command
) -> None:
    """A run that found all done wrote them after `retry` had begun and before it committed."""
    images, workdir = broken
    written = {path: path.read_bytes() for path in (workdir / "annotations.json", workdir / "stages" / "outputs.json")}
    torn = sorted(images.iterdir())[3]
    shutil.copyfile(few_scenes / "images" / torn.name, torn)
    stopped = command("retry", workdir, OVSEG_FAILPOINTS="refine.committed:1=EIO")
    assert stopped.returncode == 1
    for path, content in written.items():
        path.write_bytes(content)
    done = command(*run_arguments(images, workdir))
    assert done.returncode == 0 and "6 images" in done.stdout, done.stdout
    assert failures(workdir) == []
