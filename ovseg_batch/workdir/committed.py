"""Read files of committed shards after checking their bytes against the commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovseg_batch.errors import OvsegError
from ovseg_batch.io.atomic import damage
from ovseg_batch.io.tables import TABLE, read_results
from ovseg_batch.types import Annotation
from ovseg_batch.units import counted
from ovseg_batch.workdir.store import StageStore


def checked(store: StageStore, shard: int, path: Path) -> Path:
    """Return the path of a file of a shard, after comparing its bytes with the shard's commit.

    Raises:
        OvsegError: the bytes differ from the commit.
    """
    name = path.relative_to(store.folder).as_posix()
    while True:
        commit = store.read_sealed(shard)
        record = None if commit is None else next((file for file in commit.files if file.path == name), None)
        what = "" if record is None else damage(store.folder, record)
        if not what:
            return path
        if store.read_sealed(shard) == commit:  # otherwise a run has replaced the file in the meantime
            raise OvsegError(
                f"{path} is damaged: {what}. Run `ovseg-batch verify WORKDIR --repair`, then the run's own command, "
                "which computes the shard again."
            )


def read_lines(
    store: StageStore, shard: int, columns: Sequence[str] | None = None, masks: type[Any] = Annotation
) -> list[dict[str, Any]]:
    """Return the lines of a shard's table in row order, as `read_results` does. The column `row` is always read.

    Raises:
        OvsegError: as `checked`, or the stage did not write the table.
    """
    path = store.data_path(shard, TABLE)
    while True:
        commit = store.read_sealed(shard)
        try:
            lines = read_results(checked(store, shard, path), columns and ("row", *columns), masks)
            if commit is not None:
                _check_rows(lines, commit.rows)
            return lines
        except ValueError as error:
            if store.read_sealed(shard) == commit:  # otherwise a run has replaced the table in the meantime
                raise foreign(store, shard, str(error)) from None


def _check_rows(lines: Sequence[Mapping[str, Any]], expected: int) -> None:
    """Raise ValueError if a table has not one line for each of its rows."""
    rows = {line.get("row") for line in lines} - {None}
    if not len(rows) == len(lines) == expected:
        raise ValueError(f"it has {counted(len(lines), 'line')} of {counted(len(rows), 'row')} instead of {expected}")


def foreign(store: StageStore, shard: int, reason: str) -> OvsegError:
    """Return the error for a table that the stage did not write, although its commit holds the right hash."""
    return OvsegError(
        f"{store.data_path(shard, TABLE)} was not written by this run: {reason}. "
        f"Delete the folder {store.folder}, and give the command of the run again."
    )
