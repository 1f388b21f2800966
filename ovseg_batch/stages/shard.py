"""Compute and commit shards. Data files are durable before the commit record exists.

Data files are written beside their names, made durable and renamed; then the commit record is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ovseg_batch import failpoints
from ovseg_batch.errors import CHANGED, FailureCode, OvsegError
from ovseg_batch.io.atomic import FileBatch, file_record, publish, temporary_path
from ovseg_batch.io.logits import ArrayWriter
from ovseg_batch.io.remote import shown
from ovseg_batch.io.tables import TABLE, ResultWriter
from ovseg_batch.stages.base import ARRAYS, Stage, Upstream, WordStage, failed
from ovseg_batch.stages.earlier import earlier_shards
from ovseg_batch.stages.upstream import CommittedShard
from ovseg_batch.types import Commit, FileRecord, ImageRow, RowResult
from ovseg_batch.workdir.store import FILES, StageStore

Progress = Callable[[RowResult], None]
Compute = Callable[[Sequence[ImageRow], Mapping[str, Upstream]], Iterator[RowResult]]


def run_shard(
    stage: Stage,
    store: StageStore,
    shard: int,
    rows: Sequence[ImageRow],
    crashing: Mapping[int, str] | None = None,
    retry: bool = False,
    progress: Progress = lambda result: None,
) -> Commit:
    """Compute one shard and commit it. The only place where a commit record is written.

    Another process may commit the same shard before or meanwhile. Its commit is kept and returned, unless it has more
    failed rows: replacing it would remove a commit that the other process has already counted.

    Args:
        crashing: row → cause of the rows that crash the process. They fail without being read.
        retry: keep the finished rows of the commit and compute only failed rows. A commit that is not current is
            treated in the same way: its rows are kept where neither the manifest nor an upstream stage has changed
            them.
        progress: called with each result that the stage has computed.

    Raises:
        OSError: the disk is full or not available. No file of the shard is visible.
        OvsegError: the stage broke its contract (a row answered twice, or not a row of this shard), or an upstream
            stage has lost its commit of the shard.
    """
    started = time.monotonic()
    above = store.upstream_commits(shard)
    if above is None:
        raise OvsegError(
            f"{store.stage}: an earlier stage has no commit of shard {shard} any more. Another command has removed it. "
            "Committed shards are kept. Run the same command again."
        )
    previous = store.read_commit(shard, outdated=True)
    if previous is not None and store.is_current(previous) and not retry:
        return previous
    keep = previous is not None and previous.follows(above)
    with contextlib.ExitStack() as stack:
        stack.enter_context(failpoints.within(stage.name))
        upstream = {name: stack.enter_context(CommittedShard(s, shard)) for name, s in store.upstream.items()}
        kept = stack.enter_context(CommittedShard(store, shard)) if keep else None
        same = {row.row for row in rows if previous is not None and row.revision <= previous.revision}
        compute = stack.enter_context(_computation(stage, store, shard, above))
        refused = {
            row.row: failed(row, FailureCode.CRASHED, why) for row in rows if (why := (crashing or {}).get(row.row))
        }
        results = _checked(stage, rows, _results(compute, rows, upstream, refused, kept, same, progress))
        draft = stack.enter_context(_drafted(stage, store, shard, results))
        failpoints.reach("data")
        with store.publishing():
            present = store.read_commit(shard)
            if (
                present is not None
                and present != previous
                and sum(present.failed.values()) <= sum(draft.failed.values())
            ):
                return present
            store.uncommit(shard)
            files = draft.publish(store)
            commit = Commit(
                stage=stage.name,
                fingerprint=store.fingerprint,
                shard=shard,
                rows=len(rows),
                ok=len(rows) - sum(draft.failed.values()),
                failed=dict(sorted(draft.failed.items())),
                files=files,
                attempt=previous.attempt + 1 if previous else 1,
                seconds=round(time.monotonic() - started, 3),
                host=socket.gethostname(),
                revision=store.revision(shard),
                upstream={name: commit.digest for name, commit in above.items()},
                keeps=previous.digest if previous is not None and keep else "",
                reused=draft.reused,
            )
            failpoints.reach("commit")
            store.write_commit(commit)
            failpoints.reach("committed")
            if previous is not None:
                store.remove_files({file.path for file in previous.files} - {file.path for file in files})
    return commit


def probe_shard(
    stage: Stage,
    store: StageStore,
    shard: int,
    rows: Sequence[ImageRow],
    begin: Callable[[int], None],
    progress: Progress,
) -> None:
    """Process rows one at a time and discard the results, to find the row that crashes the worker.

    Args:
        begin: called with the number of each row before it is processed.
        progress: called with each result.
    """
    with contextlib.ExitStack() as stack:
        upstream = {name: stack.enter_context(CommittedShard(s, shard)) for name, s in store.upstream.items()}
        compute = stack.enter_context(_computation(stage, store, shard, store.upstream_commits(shard) or {}))
        for row in _identified(rows, upstream, {}):
            begin(row.row)
            for _ in _reported(compute([row], upstream), progress):
                pass


@contextlib.contextmanager
def _computation(stage: Stage, store: StageStore, shard: int, upstream: Mapping[str, Commit]) -> Iterator[Compute]:
    """Return the stage's function for a shard. A stage that searches for words gets what earlier runs have of them."""
    if isinstance(stage, WordStage):
        with earlier_shards(stage, store, shard, upstream) as earlier:
            yield functools.partial(stage.process, earlier=earlier)
    else:
        yield stage.process


def _reported(results: Iterable[RowResult], progress: Progress) -> Iterator[RowResult]:
    """Yield the results, and call `progress` with each."""
    for result in results:
        progress(result)
        yield result


def _results(
    compute: Compute,
    rows: Sequence[ImageRow],
    upstream: Mapping[str, Upstream],
    refused: dict[int, RowResult],
    kept: CommittedShard | None,
    same: Collection[int],
    progress: Progress,
) -> Iterator[RowResult]:
    """Yield the stage's results of the rows to compute, and in their places the known results of the others.

    Args:
        refused: by row: failed results of rows that are not computed.
    """
    known = {number for number in same if kept is not None and kept.failure(number) is None}
    todo = _identified([row for row in rows if row.row not in known and row.row not in refused], upstream, refused)
    fresh = _reported(compute(todo, upstream), progress)
    for row in rows:
        if row.row in refused:
            yield refused[row.row]
        elif kept is not None and row.row in known:
            yield kept.result(row)
        else:
            yield from itertools.islice(fresh, 1)
    yield from fresh


def _identified(
    rows: Sequence[ImageRow], upstream: Mapping[str, Upstream], refused: dict[int, RowResult]
) -> list[ImageRow]:
    """Return the rows with the hash of the file that the earlier stages have read.

    Args:
        refused: gets the rows whose file changed between two of these stages.
    """
    found = []
    for row in rows:
        contents = {one.content(row.row) for one in upstream.values()} - {None}
        if len(contents) > 1:
            refused[row.row] = failed(row, FailureCode.CHANGED, f"{shown(row.path)} {CHANGED}")
        else:
            found.append(dataclasses.replace(row, content=contents.pop() if contents else None))
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Draft:
    """The files of a shard under temporary names.

    Attributes:
        paths: temporary path → final path.
        files: the output files of the stage. None: it writes none.
        failed: code → number of failed rows.
        reused: words of images whose results come from earlier runs.
    """

    paths: Mapping[Path, Path]
    files: FileBatch | None
    failed: Counter[str]
    reused: int

    def publish(self, store: StageStore) -> tuple[FileRecord, ...]:
        """Give the files their final names. Return their records."""
        for temporary, path in self.paths.items():
            publish(temporary, path)
        records = [file_record(path, store.folder) for path in self.paths.values()]
        for record in self.files.publish() if self.files is not None else ():
            records.append(dataclasses.replace(record, path=f"{FILES}/{record.path}"))
        return tuple(records)


@contextlib.contextmanager
def _drafted(stage: Stage, store: StageStore, shard: int, results: Iterable[RowResult]) -> Iterator[_Draft]:
    """Write the results under temporary names. What is not published is deleted on exit."""
    paths = [store.data_path(shard, TABLE)] + ([store.data_path(shard, ARRAYS)] if stage.arrays else [])
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    temporaries = [temporary_path(path) for path in paths]
    tally: Counter[str] = Counter()
    reused = 0
    with contextlib.ExitStack() as whole:
        files = whole.enter_context(FileBatch(store.files, store.parts)) if FILES in stage.columns.names else None
        for temporary in temporaries:
            whole.callback(temporary.unlink, missing_ok=True)
        with contextlib.ExitStack() as stack:
            table = stack.enter_context(contextlib.closing(ResultWriter(temporaries[0], stage.columns)))
            arrays = stack.enter_context(contextlib.closing(ArrayWriter(temporaries[1]))) if stage.arrays else None
            for result in results:
                result = _hand_over(stage, result, arrays, files)
                if result.code is not None:
                    tally[str(result.code)] += 1
                reused += result.reused
                table.write(result)
                failpoints.reach("row")
            if files is not None:
                files.finish()
        yield _Draft(dict(zip(temporaries, paths, strict=True)), files, tally, reused)


def _hand_over(stage: Stage, result: RowResult, arrays: ArrayWriter | None, files: FileBatch | None) -> RowResult:
    """Pass the arrays and files of a result to their writers. Return the result, failed if a file name is invalid."""
    if (result.arrays and arrays is None) or (result.files and files is None):
        raise OvsegError(f"Stage {stage.name} gave arrays or files but declares none.")
    if files is not None:
        for name in result.files:
            if not files.accepts(name):
                return failed(result, FailureCode.UNWRITABLE, f"no file can be called {name} here")
        for name, content in result.files.items():
            files.add(name, content)
    if arrays is not None:
        for name, array in sorted(result.arrays.items()):
            arrays.write(result.row, name, array)
    return result


def _checked(stage: Stage, rows: Sequence[ImageRow], results: Iterable[RowResult]) -> Iterator[RowResult]:
    """Check the results of a stage: every row once, in manifest order, with finite values only."""
    waiting = {row.row: row for row in rows}
    order = iter([row.row for row in rows])
    held: dict[int, RowResult] = {}
    following = next(order, None)
    for result in results:
        if waiting.pop(result.row, None) is None:
            raise OvsegError(f"Stage {stage.name} answered row {result.row} twice, or it is not in this shard.")
        held[result.row] = finite(result)
        while following in held:
            yield held.pop(following)
            following = next(order, None)
    for row in waiting.values():
        held[row.row] = RowResult(row.row, row.key, code=FailureCode.INTERNAL, message="the stage gave no result")
    while following is not None:
        yield held.pop(following)
        following = next(order, None)


def finite(result: RowResult) -> RowResult:
    """Return the result, or a failed one if it holds numbers that are not finite."""
    for name, array in result.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return failed(result, FailureCode.MODEL, f"{name} holds numbers that are not finite")
    for name, value in result.values.items():
        if isinstance(value, float) and math.isinf(value):
            return failed(result, FailureCode.MODEL, f"{name} is infinite")
    return result
