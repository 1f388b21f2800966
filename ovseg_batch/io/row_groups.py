"""Build and read the row groups of a manifest. Each shard is one row group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.errors import UsageError
from ovseg_batch.io.entries import SHOWN, without_controls

NUMBERS: dict[pa.DataType, type] = {pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}
REQUIRED = frozenset(("row", "key", "file_name", "path"))  # columns in which every row has a value


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table. Rows may lack nullable columns.

    `pa.array` imports pandas if it is installed, which takes a third of the time of a dry run. Therefore numbers, texts
    and booleans are built from their buffers. Layout: Apache Arrow, Columnar Format, "Variable-size Binary Layout" and
    "Validity bitmaps".
    """
    columns = [_column([row.get(one.name) for row in rows], one.type) for one in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return values as an array of a type. None becomes null."""
    if kind not in (*NUMBERS, pa.string(), pa.bool_()):
        return pa.array(values, kind)
    buffers: list[Any] = [_bits([value is not None for value in values])]
    if kind == pa.string():
        texts = [(value or "").encode() for value in values]
        buffers += [np.cumsum([0, *map(len, texts)], dtype=np.int32), b"".join(texts)]
    elif kind == pa.bool_():
        buffers += [_bits([bool(value) for value in values])]
    else:
        buffers += [np.array([0 if value is None else value for value in values], NUMBERS[kind])]
    return pa.Array.from_buffers(kind, len(values), [pa.py_buffer(part) for part in buffers])


def _bits(values: Sequence[bool]) -> Any:
    return np.packbits(np.array(values, bool), bitorder="little")


def read_group(file: pq.ParquetFile, path: Path, group: int, columns: Collection[str] | None = None) -> pa.Table:
    """Read one row group of an opened manifest.

    Args:
        columns: names of the columns to read. None: all.

    Raises:
        UsageError: the row group is damaged.
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
