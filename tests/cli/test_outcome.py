"""What a run prints: its plan before, and its result and the next command at the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from ovseg_batch.cli.base import guarded
from tests.conftest import SMALL, Command, run_arguments


def test_the_result_and_the_plan_as_json(finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    ended = json.loads(command(*run_arguments(few_scenes / "images", finished, "--json")).stdout)
    assert (ended["images"], ended["complete"], ended["shards_left"], ended["failures"]) == (6, True, 0, 0)
    assert ended["masks"] == len(json.loads((finished / "annotations.json").read_text())["annotations"])
    assert ended["embedded_models"] == ["clip.model", "sam.model"] and ended["label_images"]["sky"] > 0
    few = ("run", few_scenes / "images", "-o", tmp_path / "new", "--labels", "sky; car: car, boat", *SMALL)
    plan = json.loads(command(*few, "--dry-run", "--json").stdout)
    assert (plan["images"], plan["shards"], plan["changes"]) == (6, 3, None)
    assert plan["labels"][1] == {"name": "car", "words": ["car", "boat"]}
    assert "grass" in plan["competing_words"] and "boat" not in plan["competing_words"]
    assert plan["models"] == {"clip": "demo", "sam": "demo"}
    assert [(stage["name"], stage["shards_to_do"]) for stage in plan["stages"]] == [("dense", 3), ("refine", 3)]
    assert any("rendered scenes" in warning for warning in plan["warnings"]) and not (tmp_path / "new").exists()


def test_the_plan_of_an_update(finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    images = shutil.copytree(few_scenes / "images", tmp_path / "images")
    listed = run_arguments(images, tmp_path / "run", "--workers", "0", "--set", "refine.method=none")
    assert command(*listed).returncode == 0
    first, second, *_ = sorted(images.iterdir())
    shutil.copy(first, images / "new.png")
    os.utime(second, (1, 1))
    first.unlink()
    done = command(*listed, "--update", "--dry-run")
    assert "7 images" not in done.stdout and ": 1 new, 1 changed, 1 gone" in done.stdout
    assert ": 1 new" not in command(*listed, "--dry-run").stdout, "nothing was written"


def test_the_last_lines_name_what_was_found_and_the_next_command(
    finished: Path, few_scenes: Path, command: Command
) -> None:
    lines = command(*run_arguments(few_scenes / "images", finished)).stdout.splitlines()
    assert lines[1].startswith("images with a mask: ") and " sky " in lines[1]
    assert lines[-1] == f"next: ovseg-batch report {finished}"
    written = command("report", finished)
    assert (finished / "report" / "index.html").is_file() and str(finished / "report") in written.stdout
    shutil.rmtree(finished / "report")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (MemoryError(), "no memory was left (MemoryError)"),
        (MemoryError("Unable to allocate 9 GiB"), "no memory was left (Unable to allocate 9 GiB)"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            "no memory was left (libtorch_cpu.so",
        ),
    ],
)
def test_a_process_without_memory_ends_with_a_message(
    error: Exception, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        guarded(Mock(side_effect=error))()
    assert ended.value.code == 1
    assert shown in caplog.text and "Committed shards are kept" in caplog.text


def test_an_error_of_the_program_is_not_hidden() -> None:
    with pytest.raises(ImportError, match="no_such"):
        guarded(Mock(side_effect=ImportError("No module named 'no_such'")))()


def test_a_reader_that_leaves_is_no_error() -> None:
    """`ovseg-batch methods | head -n 1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "ovseg_batch", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
