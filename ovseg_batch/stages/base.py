"""The interface of stages, and access to the results of earlier stages.

A stage computes one `RowResult` per row of a shard. It depends on no path, commit or other stage. It reads
the results of earlier stages through `Upstream`. `stages.shard` writes what it returns.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from ovseg_batch.errors import FailureCode, OvsegError
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.logits import ArrayReader
from ovseg_batch.io.remote import Remote
from ovseg_batch.io.tables import RESULT_COLUMNS
from ovseg_batch.models.precision import precision
from ovseg_batch.models.zoo import ModelSpec
from ovseg_batch.settings import Config, RunConfig
from ovseg_batch.stages.resolved import Resolved
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.workdir.committed import checked, read_lines
from ovseg_batch.workdir.store import FILES, StageStore

Array = np.ndarray[Any, Any]

Shape = tuple[int | None, ...]
ModelKind = Literal["clip", "sam", "inpaint"]  # the section of the settings that names a model

ARRAYS = ".npz"
ANSWER_STAGES = {"dense": "refine", "proposals": "classify"}  # value of `method` → the stage that gives the masks


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of a worker. Without an `accelerator`, it computes on the CPU and reserves no GPU."""

    accelerator: bool = True


class Upstream:
    """The committed shard of an earlier stage, row by row."""

    def __init__(self, store: StageStore, shard: int) -> None:
        self._store, self._shard = store, shard
        self._values = {line["row"]: line for line in read_lines(store, shard)}
        arrays = store.data_path(shard, ARRAYS)
        self._arrays = ArrayReader(checked(store, shard, arrays)) if arrays.exists() else None

    def failure(self, row: int) -> str | None:
        """Why the earlier stage failed this row, or None when it is there."""
        line = self._values[row]
        return None if line["status"] == "ok" else f"{line['code']}: {line['message']}"

    def values(self, row: int) -> dict[str, Any]:
        return self._values[row]

    def content(self, row: int) -> str | None:
        """The hash of the image file that the row comes from; None where it failed or no hash was recorded."""
        return self._values[row].get("content")

    def array(self, row: int, name: str, shape: Shape) -> Array:
        """Return a numeric array that the stage has stored for the row.

        Args:
            name: of the array.
            shape: required shape. None: any length of at least 1.

        Raises:
            OvsegError: the shard holds no such array. Where hashes are forged, its bytes can still be those committed.
        """
        path = self._store.data_path(self._shard, ARRAYS)
        try:
            if self._arrays is None:
                raise KeyError(name)
            array = self._arrays.read(row, name)
            if array.dtype.kind != "f" or not _fits(array.shape, shape):
                raise ValueError(f"it is {array.dtype} of the shape {array.shape}")
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise OvsegError(
                f"{path} is damaged: row {row} has no array {name!r} that fits its image ({error}). Delete the file, "
                "and run the same command again, which computes the shard again."
            ) from None
        return array

    def arrays(self, row: int) -> dict[str, Array]:
        """Return the arrays that are stored for the row, by name, without checks."""
        return self._arrays.read_all(row) if self._arrays is not None else {}

    def result(self, row: ImageRow) -> RowResult:
        """The row as the stage gave it."""
        values = {name: value for name, value in self._values[row.row].items() if name not in RESULT_COLUMNS.names}
        paths = {name: self._store.files / name for name in values.get(FILES) or ()}
        files = {name: checked(self._store, self._shard, path).read_bytes() for name, path in paths.items()}
        return RowResult(row.row, row.key, values, self.arrays(row.row), files, self.content(row.row))

    def close(self) -> None:
        if self._arrays is not None:
            self._arrays.close()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    """Return whether a shape is the expected one."""
    return len(shape) == len(expected) and all(a and b in (a, None) for a, b in zip(shape, expected, strict=True))


class StagePlan(Protocol):
    """The inputs, outputs and dependencies of a stage. It is built from the settings and imports no model library.

    Attributes:
        version: changes when the code changes what the stage computes.
        needs: names of the stages that it reads.
        columns: fields that it adds to the Parquet row. A stage that writes files names them in a column `files`.
        arrays: whether it writes an NPZ.
        reads_images: whether it opens the images. Otherwise it uses the results of earlier stages.
    """

    name: str
    version: int
    needs: tuple[str, ...]
    resources: Resources
    columns: pa.Schema
    arrays: bool
    reads_images: bool

    def inputs(self) -> dict[str, Any]:
        """Return all values that decide the result, except manifest and upstream, as JSON-able values."""
        ...

    def estimate_bytes(self, height: int, width: int) -> int | None:
        """Return the bytes of the arrays of an image of that size, or None if they depend on its content."""
        ...


class DeclaredPlan(StagePlan, Protocol):
    """A plan whose class declares the effects of settings, before words and models are resolved."""

    def __init__(self, run: Resolved) -> None: ...

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        """Return the names of the stages that it reads under these settings."""
        ...

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        """Return the models that it loads under these settings."""
        ...

    @staticmethod
    def cost_of(config: Config) -> str:
        """Describe the computations of its models per image. Empty if they are small."""
        ...

    @staticmethod
    def query_setting(config: Config) -> tuple[str, str] | None:
        """Return the key and value with which a run stores the results that queries need from this stage."""
        ...


class Stage(StagePlan, Protocol):
    """One step of the pipeline: a plan, and the code that computes it."""

    def setup(self, device: str) -> None:
        """Load the models onto the device. Called once per worker, before the first shard."""
        ...

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        """Yield exactly one result per row. Errors of one image are failed results, never exceptions."""
        ...


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


def done(
    row: ImageRow,
    values: dict[str, Any],
    arrays: dict[str, Array] | None = None,
    files: dict[str, bytes] | None = None,
) -> RowResult:
    """The result of an image, from the content of its file that `row` states."""
    return RowResult(row.row, row.key, values, arrays or {}, files or {}, row.content)


def failed(row: ImageRow | RowResult, code: FailureCode, message: str) -> RowResult:
    """The terminal row of an image that cannot be done."""
    return RowResult(row.row, row.key, code=code, message=message)
