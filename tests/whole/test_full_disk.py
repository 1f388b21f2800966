"""A full disk ends a command with one sentence that names the folder; without the text cache a run goes on."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovseg_batch.io.atomic import create
from tests.conftest import Command, run_arguments
from tests.harness.disk import CannotMount, SmallDisk, small_disk

FULL = Path("/dev/full")


@contextmanager
def disk_of(kib: int, folder: Path) -> Iterator[SmallDisk]:
    try:
        with small_disk(folder / "disk", kib=kib) as small:
            yield small
    except CannotMount as error:
        pytest.skip(f"cannot mount here: {error}")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("table", [False, True])
def test_an_error_of_writing_names_the_folder_also_from_another_process(table: bool) -> None:
    with pytest.raises(OSError, match="No space") as raised, create(FULL) as file:
        if table:
            pq.write_table(pa.table({"x": [1, 2, 3]}), file)
        else:
            file.write(b"x")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/dev")
    assert pickle.loads(pickle.dumps(raised.value)).filename == "/dev"


@pytest.mark.slow("a full disk stops a command cleanly and is named")
def test_a_run_names_the_full_folder_of_its_workdir(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    with disk_of(100, tmp_path) as small:
        done = command(*run_arguments(few_scenes / "images", small.path / "run"))
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and f"No space left on device ({small.path / 'run'}" in last
        assert "Free space on that disk and give the same command again" in last


@pytest.mark.parametrize(
    ("arguments", "kib"),
    [
        (("export", "-f", "yolo", "--images", "copy"), 40),
        (("export", "-f", "yolo"), 24),
        (("export", "-f", "semantic"), 40),
        (("export", "-f", "coco"), 8),
        (("report",), 40),
    ],
)
def test_an_output_names_its_full_folder(
    arguments: tuple[str, ...], kib: int, finished: Path, tmp_path: Path, command: Command
) -> None:
    with disk_of(kib, tmp_path) as small:
        name, *options = arguments
        done = command(name, finished, *options, "-o", small.path / "out")
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and f"No space left on device ({small.path}" in last


@pytest.mark.slow("a full disk stops a command cleanly and is named")
def test_a_text_cache_without_room_is_named_and_costs_no_run(
    few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    with disk_of(40, tmp_path) as small:
        done = command(*run_arguments(few_scenes / "images", tmp_path / "run"), OVSEG_CACHE=str(small.path))
        assert done.returncode == 0, done.stderr
        assert f"cannot write the text cache {small.path}" in done.stderr and "No space left" in done.stderr
