"""`status --watch`, and how durations are written."""

from __future__ import annotations

from pathlib import Path

from ovseg_batch.workdir import progress
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command, run_arguments


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


def test_durations() -> None:
    texts = [progress.duration(seconds) for seconds in (0.4, 61, 3599.6, 7384)]
    assert texts == ["0 s", "1 min 01 s", "1 h 00 min", "2 h 03 min"]
