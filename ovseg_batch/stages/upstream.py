"""The two sources of an earlier stage's results: a shard on disk, and results that are still in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from ovseg_batch.errors import OvsegError
from ovseg_batch.io.logits import ArrayReader
from ovseg_batch.io.tables import RESULT_COLUMNS
from ovseg_batch.stages.base import ARRAYS, Shape
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.types.arrays import AnyArray, Numbers, Pixels
from ovseg_batch.workdir.committed import checked, read_lines
from ovseg_batch.workdir.store import FILES, StageStore


class CommittedArrays:
    """The arrays of a committed shard, row by row.

    Raises:
        OvsegError: the file differs from the commit.
    """

    def __init__(self, store: StageStore, shard: int) -> None:
        self._store, self._shard = store, shard
        path = store.data_path(shard, ARRAYS)
        self._arrays = ArrayReader(checked(store, shard, path)) if path.exists() else None

    def array(self, row: int, name: str, shape: Shape) -> Numbers:
        """Return an array as `Upstream.array`. Raises OvsegError as `_read`."""
        return self._read(row, name, shape, "f")

    def pixels(self, row: int, name: str, shape: Shape) -> Pixels:
        """Return an array as `Upstream.pixels`. Raises OvsegError as `_read`."""
        return self._read(row, name, shape, "u")

    def _read(self, row: int, name: str, shape: Shape, kind: str) -> AnyArray:
        """Return an array of one kind of numbers: `f` floating-point numbers, `u` unsigned integers.

        Raises:
            OvsegError: the shard holds no such array. Where hashes are forged, its bytes can still be those committed.
        """
        path = self._store.data_path(self._shard, ARRAYS)
        try:
            if self._arrays is None:
                raise KeyError(name)
            array = self._arrays.read(row, name)
            if array.dtype.kind != kind or not _fits(array.shape, shape):
                raise ValueError(f"it is {array.dtype} of the shape {array.shape}")
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise OvsegError(
                f"{path} is damaged: row {row} has no array {name!r} that fits its image ({error}). Delete the file, "
                "and run the same command again, which computes the shard again."
            ) from None
        return array

    def arrays(self, row: int) -> dict[str, AnyArray]:
        """Return every array kept for the row, by name, unchecked."""
        return self._arrays.read_all(row) if self._arrays is not None else {}

    def close(self) -> None:
        if self._arrays is not None:
            self._arrays.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CommittedShard(CommittedArrays):
    """The committed shard of a stage, row by row. Raises: as `CommittedArrays`."""

    def __init__(self, store: StageStore, shard: int) -> None:
        self._values = {line["row"]: line for line in read_lines(store, shard)}
        super().__init__(store, shard)

    def failure(self, row: int) -> str | None:
        line = self._values[row]
        return None if line["status"] == "ok" else f"{line['code']}: {line['message']}"

    def values(self, row: int) -> dict[str, Any]:
        return self._values[row]

    def content(self, row: int) -> str | None:
        return self._values[row].get("content")

    def result(self, row: ImageRow) -> RowResult:
        """Return the row as the stage returned it."""
        values = {name: value for name, value in self._values[row.row].items() if name not in RESULT_COLUMNS.names}
        paths = {name: self._store.files / name for name in values.get(FILES) or ()}
        files = {name: checked(self._store, self._shard, path).read_bytes() for name, path in paths.items()}
        return RowResult(row.row, row.key, values, self.arrays(row.row), files, self.content(row.row))


class InMemoryShard:
    """Results of a stage that computes in the same process, for rows that it has not failed."""

    def __init__(self, results: Sequence[RowResult]) -> None:
        self._results = {result.row: result for result in results}

    def __contains__(self, row: int) -> bool:
        return row in self._results

    def failure(self, row: int) -> str | None:
        return None

    def values(self, row: int) -> dict[str, Any]:
        return dict(self._results[row].values)

    def content(self, row: int) -> str | None:
        return self._results[row].content

    def array(self, row: int, name: str, shape: Shape) -> Numbers:
        return self._results[row].arrays[name]

    def pixels(self, row: int, name: str, shape: Shape) -> Pixels:
        return self._results[row].arrays[name]


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    """Return whether a shape is the expected one."""
    return len(shape) == len(expected) and all(a and b in (a, None) for a, b in zip(shape, expected, strict=True))
