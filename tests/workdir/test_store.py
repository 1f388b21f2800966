import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ovseg_batch.errors import FailureCode, OvsegError, RowError
from ovseg_batch.io.atomic import temporary_path, write_text
from ovseg_batch.io.sealed import seal
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.stages.base import Resources, Stage, Upstream, failed
from ovseg_batch.stages.shard import run_shard
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.stages.upstream import CommittedShard
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.workdir.store import StageStore, Workdir, fingerprint


class Echo(Stage):
    """A stage that answers each row with its number and an array; odd keys fail."""

    name, resources, arrays = "echo", Resources(False), True
    columns = pa.schema([pa.field("number", pa.int64())])

    def __init__(self) -> None:
        pass

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        for row in reversed(rows):
            if row.key.startswith("bad"):
                yield failed(row, FailureCode.TRUNCATED, "half a file")
            else:
                yield RowResult(row.row, row.key, {"number": row.row}, {"x": np.full((2, 3), row.row, np.float16)})


class Silent(Echo):
    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        yield from list(super().process(rows, upstream))[1:]


class Twice(Echo):
    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        yield from super().process(rows, upstream)
        yield from super().process(rows, upstream)


class NotFinite(Echo):
    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        for row in rows:
            yield RowResult(row.row, row.key, {"number": 0}, {"x": np.array([np.nan], np.float16)})


ROWS = [ImageRow(row=i, key=k, file_name=k, path=k) for i, k in enumerate(["a", "bad", "c", "d"])]


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    store = Workdir(tmp_path).stage("echo", fingerprint({"stage": "echo"}))
    store.create({"stage": "echo"})
    return store


def test_every_row_has_one_terminal_line_in_manifest_order_failed_ones_with_code_and_message(store: StageStore) -> None:
    commit = run_shard(Echo(), store, 0, ROWS)
    assert (commit.rows, commit.ok, commit.failed) == (4, 3, {"truncated": 1})
    with CommittedShard(store, 0) as shard:
        assert [shard.values(i)["status"] for i in range(4)] == ["ok", "failed", "ok", "ok"]
        assert shard.failure(1) == "truncated: half a file"
        assert shard.array(2, "x", (2, 3)).tolist() == [[2, 2, 2], [2, 2, 2]]


def test_a_row_the_stage_forgets_becomes_a_failed_row(store: StageStore) -> None:
    commit = run_shard(Silent(), store, 0, ROWS)
    assert commit.failed == {"internal": 1, "truncated": 1}


def test_a_row_answered_twice_stops_the_run_and_leaves_nothing_visible(store: StageStore) -> None:
    with pytest.raises(OvsegError, match="twice"):
        run_shard(Twice(), store, 0, ROWS)
    assert store.read_commit(0) is None
    assert not [path for path in (store.folder / "data").rglob("*") if path.is_file()]


def test_numbers_that_are_not_finite_fail_their_row(store: StageStore) -> None:
    assert run_shard(NotFinite(), store, 0, ROWS).failed == {"model": 4}


def test_data_files_of_two_runs_are_equal_byte_for_byte(store: StageStore) -> None:
    first = run_shard(Echo(), store, 0, ROWS)
    second = run_shard(Echo(), store, 0, ROWS, retry=True)
    assert first.files == second.files
    assert (first.attempt, second.attempt) == (1, 2)


def test_a_shard_that_another_process_has_committed_before_is_kept(store: StageStore) -> None:
    first = run_shard(Echo(), store, 0, ROWS)
    assert run_shard(Twice(), store, 0, ROWS) == store.read_commit(0) == first


class Overtaken(Echo):
    """A stage during whose computation another process commits the same shard."""

    def __init__(self, store: StageStore, other: Stage) -> None:
        self._store, self._other = store, other

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        yield from super().process(rows, upstream)
        run_shard(self._other, self._store, 0, ROWS, retry=True)


@pytest.mark.parametrize("before", [False, True], ids=["missing", "computed again"])
def test_a_shard_that_another_process_has_committed_meanwhile_is_kept(store: StageStore, before: bool) -> None:
    """The other run counts its commit as done, so the commit must not be absent at any time."""
    if before:
        run_shard(Silent(), store, 0, ROWS)
    commit = run_shard(Overtaken(store, Echo()), store, 0, ROWS, retry=True)
    assert commit == store.read_commit(0)
    assert (commit.attempt, commit.failed) == (1 + before, {"truncated": 1})
    assert not list(store.folder.rglob("*.tmp"))


def test_a_commit_with_more_failed_rows_does_not_replace_results(store: StageStore) -> None:
    commit = run_shard(Overtaken(store, Silent()), store, 0, ROWS)
    assert (commit.attempt, commit.failed) == (1, {"truncated": 1})
    assert store.read_commit(0) == commit


def test_a_commit_counts_only_while_its_files_have_the_recorded_size(store: StageStore) -> None:
    run_shard(Echo(), store, 0, ROWS)
    assert store.missing(2) == [1]
    path = store.data_path(0, ".npz")
    path.write_bytes(path.read_bytes()[:-1])
    assert store.missing(2) == [0, 1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "echo"}'])
def test_a_torn_or_foreign_commit_record_does_not_count(store: StageStore, text: str) -> None:
    run_shard(Echo(), store, 0, ROWS)
    store.commit_path(0).write_text(text)
    assert store.read_commit(0) is None


@pytest.mark.parametrize("path", ["/etc/hostname", "../stage.json", "data/../../x"])
def test_a_commit_that_names_a_file_elsewhere_does_not_count(store: StageStore, path: str) -> None:
    record = run_shard(Echo(), store, 0, ROWS).to_record()
    store.commit_path(0).write_bytes(seal({**record, "files": [{**record["files"][0], "path": path}]}))
    assert store.missing(1) == [0]
    assert next(store.verify(1)).what == "the commit record is damaged"


def test_a_commit_with_values_of_other_types_does_not_count(store: StageStore) -> None:
    record = run_shard(Echo(), store, 0, ROWS).to_record()
    store.commit_path(0).write_bytes(seal({**record, "failed": {"truncated": "many"}}))
    assert store.missing(1) == [0]


def test_a_commit_of_another_fingerprint_does_not_count(store: StageStore) -> None:
    run_shard(Echo(), store, 0, ROWS)
    path = store.commit_path(0)
    path.write_text(path.read_text().replace(store.fingerprint, "0" * 32))
    assert store.read_commit(0) is None


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_one_image_that_never_fits_is_charged() -> None:
    tried: list[int] = []

    def compute(batch: Sequence[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 2 or 5 in batch:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [item * 10 for item in batch]

    results = split_on_failure(compute, list(range(8)), BatchSize(8))
    assert [r for r in results if not isinstance(r, RowError)] == [0, 10, 20, 30, 40, 60, 70]
    assert isinstance(results[5], RowError) and results[5].code == FailureCode.OUT_OF_MEMORY
    assert tried == [8, 4, 2, 2, 2, 1, 1, 1, 2], (
        "the size that fits is kept; an item that fits at no size is tried twice"
    )


def test_only_the_temporary_files_of_dead_processes_are_removed(store: StageStore) -> None:
    ours = temporary_path(store.data_path(0, ".npz"))
    dead = ours.with_name(ours.name.replace("@", "@99999"))
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here until wait()
    zombie = ours.with_name(ours.name.replace(f"@{os.getpid()}", f"@{child.pid}"))
    for path in (ours, dead, zombie):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    elsewhere, old = (ours.with_name(ours.name.replace("-", f"-{k}", 1)) for k in (1, 2))  # in other containers
    for path in (elsewhere, old):
        path.touch()
    os.utime(old, (0, 0))
    assert Workdir(store.folder.parent.parent).remove_leftovers() == 3
    assert ours.exists() and elsewhere.exists() and not any(path.exists() for path in (dead, zombie, old))
    child.wait()


def test_a_temporary_name_fits_beside_the_longest_names(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 127, "a" + "猫" * 84):
        path = tmp_path / name
        write_text(path, "content")
        assert path.read_text() == "content" and list(tmp_path.iterdir()) == [path]
        path.unlink()
