"""What a stage is, and the one way its results reach the disk.

A stage turns the rows of a shard into one `RowResult` each. It knows no path, no commit and no other stage: what it
needs from upstream it reads through `Upstream`. `run_shard` does the rest, in the only order that is safe: data files
written beside their names, made durable, renamed; then the commit record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from ovseg_batch import failpoints
from ovseg_batch.errors import FailureCode, OvsegError, RowError
from ovseg_batch.io.atomic import FileBatch, file_record, publish, temporary_path
from ovseg_batch.io.images import Limits
from ovseg_batch.io.logits import ArrayReader, ArrayWriter
from ovseg_batch.io.remote import Remote
from ovseg_batch.io.tables import RESULT_COLUMNS, TABLE, ResultWriter, read_results
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.device import precision
from ovseg_batch.models.faults import is_out_of_memory
from ovseg_batch.models.zoo import ModelSpec
from ovseg_batch.settings import Config, RunConfig
from ovseg_batch.store import FILES, StageStore
from ovseg_batch.types import Commit, FileRecord, ImageRow, RowResult

Array = np.ndarray[Any, Any]

T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[RowResult], None]

ARRAYS = ".npz"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker of a stage needs. Without an `accelerator` it computes on the CPU and reserves no GPU."""

    accelerator: bool = True


class Upstream:
    """The committed shard of an earlier stage, row by row."""

    def __init__(self, store: StageStore, shard: int) -> None:
        self._files = store.files
        table = store.data_path(shard, TABLE)
        self._values = {line["row"]: line for line in read_results(table)}
        arrays = store.data_path(shard, ARRAYS)
        self._arrays = ArrayReader(arrays) if arrays.exists() else None

    def failure(self, row: int) -> str | None:
        """Why the earlier stage failed this row, or None when it is there."""
        line = self._values[row]
        return None if line["status"] == "ok" else f"{line['code']}: {line['message']}"

    def values(self, row: int) -> dict[str, Any]:
        return self._values[row]

    def array(self, row: int, name: str) -> Array:
        if self._arrays is None:
            raise OvsegError("The upstream stage keeps no arrays.")
        return self._arrays.read(row, name)

    def arrays(self, row: int) -> dict[str, Array]:
        """Every array kept for the row, by name."""
        return self._arrays.read_all(row) if self._arrays is not None else {}

    def result(self, row: ImageRow) -> RowResult:
        """The row as the stage gave it."""
        values = {name: value for name, value in self._values[row.row].items() if name not in RESULT_COLUMNS.names}
        files = {name: (self._files / name).read_bytes() for name in values.get(FILES) or ()}
        return RowResult(row.row, row.key, values, self.arrays(row.row), files)

    def close(self) -> None:
        if self._arrays is not None:
            self._arrays.close()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Stage(Protocol):
    """One step of the pipeline.

    `version` changes when the code changes what it computes; `needs` names the stages it reads; `columns` are the
    fields it adds to the Parquet row; `arrays` says whether it writes an NPZ; `looks` whether it opens the images, or
    lives on what earlier stages have kept. A stage that gives files names them in a column `files`.
    """

    name: str
    version: int
    needs: tuple[str, ...]
    resources: Resources
    columns: pa.Schema
    arrays: bool
    looks: bool

    def inputs(self) -> dict[str, Any]:
        """Everything but the manifest and upstream that decides the result, as JSON-able values in clear."""
        ...

    def disk(self, height: int, width: int) -> int | None:
        """Bytes that the arrays of an image of that size take; None where its content decides."""
        ...

    def setup(self, device: str) -> None:
        """Load the models onto the device. Called once per worker, before the first shard."""
        ...

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        """Yield exactly one result per row. Errors of one image are failed results, never exceptions."""
        ...


def run_shard(
    stage: Stage,
    store: StageStore,
    shard: int,
    rows: Sequence[ImageRow],
    upstream_stores: Mapping[str, StageStore],
    charged: Mapping[int, str] | None = None,
    retry: bool = False,
    progress: Progress = lambda result: None,
) -> Commit:
    """Compute one shard and commit it. The only place where a commit record is written.

    Args:
        charged: row → why: rows that kill the process and fail without being looked at.
        retry: keep the committed rows that are well and compute the failed ones alone; so it is where the manifest
            has changed, of the rows that are as they were.
        progress: called with each result that the stage has computed.

    Raises:
        OSError: the disk is full or gone; nothing of the shard is visible then.
        OvsegError: the stage broke its contract (a row answered twice, or not a row of this shard).
    """
    started = time.monotonic()
    previous = store.read_commit(shard, outdated=True)
    outdated = previous is not None and previous.revision != store.revision(shard)
    with contextlib.ExitStack() as stack:
        stack.enter_context(failpoints.within(stage.name))
        upstream = {name: stack.enter_context(Upstream(s, shard)) for name, s in upstream_stores.items()}
        kept = stack.enter_context(Upstream(store, shard)) if previous and (retry or outdated) else None
        same = {row.row for row in rows if previous is not None and row.revision <= previous.revision}
        results = _checked(stage, rows, _results(stage, rows, upstream, charged or {}, kept, same, progress))
        tally, files = _write(stage, store, shard, results)
        commit = Commit(
            stage=stage.name,
            fingerprint=store.fingerprint,
            shard=shard,
            rows=len(rows),
            ok=len(rows) - sum(tally.values()),
            failed=dict(sorted(tally.items())),
            files=files,
            attempt=previous.attempt + 1 if previous else 1,
            seconds=round(time.monotonic() - started, 3),
            host=socket.gethostname(),
            revision=store.revision(shard),
        )
        failpoints.reach("commit")
        store.write_commit(commit)
        failpoints.reach("committed")
        if previous is not None:
            store.remove_files({file.path for file in previous.files} - {file.path for file in files})
    return commit


def probe_shard(
    stage: Stage,
    shard: int,
    rows: Sequence[ImageRow],
    upstream_stores: Mapping[str, StageStore],
    begin: Callable[[int], None],
    progress: Progress,
) -> None:
    """Process rows one at a time and discard the results, to find the row that crashes the worker.

    Args:
        begin: called with the number of each row before it is processed.
        progress: called with each result.
    """
    with contextlib.ExitStack() as stack:
        upstream = {name: stack.enter_context(Upstream(s, shard)) for name, s in upstream_stores.items()}
        for row in rows:
            begin(row.row)
            for _ in _reported(stage.process([row], upstream), progress):
                pass


def _reported(results: Iterable[RowResult], progress: Progress) -> Iterator[RowResult]:
    """Yield the results, and call `progress` with each."""
    for result in results:
        progress(result)
        yield result


def _results(
    stage: Stage,
    rows: Sequence[ImageRow],
    upstream: Mapping[str, Upstream],
    charged: Mapping[int, str],
    kept: Upstream | None,
    same: Collection[int],
    progress: Progress,
) -> Iterator[RowResult]:
    """What the stage says of the rows that it is asked for, and in between what is known of the others."""
    known = {number for number in same if kept is not None and kept.failure(number) is None}
    todo = [row for row in rows if row.row not in known and row.row not in charged]
    fresh = _reported(stage.process(todo, upstream), progress)
    for row in rows:
        if row.row in charged:
            yield failed(row, FailureCode.CRASHED, charged[row.row])
        elif kept is not None and row.row in known:
            yield kept.result(row)
        else:
            yield from itertools.islice(fresh, 1)
    yield from fresh


def _write(
    stage: Stage, store: StageStore, shard: int, results: Iterable[RowResult]
) -> tuple[Counter[str], tuple[FileRecord, ...]]:
    paths = [store.data_path(shard, TABLE)] + ([store.data_path(shard, ARRAYS)] if stage.arrays else [])
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    temporaries = [temporary_path(path) for path in paths]
    tally: Counter[str] = Counter()
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
                table.write(result)
                failpoints.reach("row")
            if files is not None:
                files.finish()
        failpoints.reach("data")
        store.uncommit(shard)
        for temporary, path in zip(temporaries, paths, strict=True):
            publish(temporary, path)
        records = [file_record(path, store.folder) for path in paths]
        for record in files.publish() if files is not None else ():
            records.append(dataclasses.replace(record, path=f"{FILES}/{record.path}"))
    return tally, tuple(records)


def _hand_over(stage: Stage, result: RowResult, arrays: ArrayWriter | None, files: FileBatch | None) -> RowResult:
    """Give a result's arrays and files to those who write them; the result, failed where its files cannot be named."""
    if (result.arrays and arrays is None) or (result.files and files is None):
        raise OvsegError(f"Stage {stage.name} gave arrays or files but declares none.")
    if files is not None:
        for name in result.files:
            if not files.can_be(name):
                return failed(result, FailureCode.UNWRITABLE, f"no file can be called {name} here")
        for name, content in result.files.items():
            files.add(name, content)
    if arrays is not None:
        for name, array in sorted(result.arrays.items()):
            arrays.write(result.row, name, array)
    return result


def _checked(stage: Stage, rows: Sequence[ImageRow], results: Iterable[RowResult]) -> Iterator[RowResult]:
    """Hold a stage to its contract: every row once, in manifest order, finite numbers only, none missing."""
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
    """The result, failed where it holds numbers that are none."""
    for name, array in result.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return failed(result, FailureCode.MODEL, f"{name} holds numbers that are not finite")
    for name, value in result.values.items():
        if isinstance(value, float) and math.isinf(value):
            return failed(result, FailureCode.MODEL, f"{name} is infinite")
    return result


def split_on_failure(
    compute: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], size: BatchSize | None = None
) -> list[R | RowError]:
    """Compute items in batches, and charge those that cannot be computed even alone.

    Args:
        compute: returns one result per item.
        size: the batch size, which shrinks when memory runs out; None: all items at once.

    Returns:
        One entry per item: its result, or the `RowError` to charge to its row.

    Raises:
        DeviceLost: the GPU does not work in this process any more. No item is charged.
    """
    size = size or BatchSize(max(len(items), 1))
    batches = size.run(len(items), lambda batch: [*compute(items[batch])], _charge)
    return list(itertools.chain.from_iterable(batches))


def _charge(error: Exception) -> list[Any]:
    """Return the result of a single item whose computation raised."""
    if is_out_of_memory(error):
        return [RowError(FailureCode.OUT_OF_MEMORY, str(error))]
    return [RowError(FailureCode.MODEL, f"{type(error).__name__}: {error}")]


def ready(
    rows: Sequence[ImageRow], upstream: Mapping[str, Upstream], needs: Sequence[str]
) -> tuple[list[ImageRow], list[RowResult]]:
    """The rows that every stage needed has done, and what to answer for the others."""
    todo, answers = [], []
    for row in rows:
        reasons = (f"{name} failed: {reason}" for name in needs if (reason := upstream[name].failure(row.row)))
        first = next(reasons, None)
        if first is None:
            todo.append(row)
        else:
            answers.append(failed(row, FailureCode.UPSTREAM, first))
    return todo, answers


def precision_of(config: Config, spec: ModelSpec) -> str:
    """Return the precision in which a model runs."""
    own = config.clip.precision if spec.kind == "clip" else config.sam.precision
    return precision(own or config.run.precision, config.run.device, not spec.embedded)


def read_limits(run: RunConfig) -> Limits:
    """What the settings let an image be."""
    remote = Remote(run.remote_tries, run.remote_timeout, run.remote_private) if run.allow_remote else None
    return Limits(run.max_pixels, run.max_file_bytes, remote)


def failed(row: ImageRow | RowResult, code: FailureCode, message: str) -> RowResult:
    """The terminal row of an image that cannot be done."""
    return RowResult(row.row, row.key, code=code, message=message)
