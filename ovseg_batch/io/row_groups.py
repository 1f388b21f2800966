"""The row groups of a manifest, each of which is one shard, read or refused in one sentence."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.errors import UsageError
from ovseg_batch.io.entries import SHOWN, without_controls

REQUIRED = frozenset(("row", "key", "file_name", "path"))  # columns in which every row has a value


def read_group(file: pq.ParquetFile, path: Path, group: int, columns: Collection[str] | None = None) -> pa.Table:
    """Return the rows of one group of an opened manifest.

    Args:
        columns: names of those to read; None: all.

    Raises:
        UsageError: the file is damaged there.
    """
    try:
        table = file.read_row_group(group, columns=None if columns is None else list(columns))
        table.validate(full=True)
        if empty := [name for name in REQUIRED.intersection(table.column_names) if table.column(name).null_count]:
            raise ValueError(f"{empty[0]} is empty")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(
            f"The manifest {path} is damaged in shard {group}: {without_controls(str(error).strip())[:SHOWN]}. Write "
            "it again with `ovseg-batch manifest`. In a workdir, delete it; the next run lists the images again."
        ) from None
    return table
