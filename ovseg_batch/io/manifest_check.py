"""Checks of a manifest that another command or person has made, before a run relies on its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.errors import UsageError
from ovseg_batch.io.hashing import key_hash
from ovseg_batch.io.manifest import COLUMNS, Manifest


def check_rows(path: Path) -> None:
    """Read the columns that every stage relies on, a shard at a time; 8 bytes a row are held.

    Raises:
        UsageError: the file is no manifest, or its rows are not those of one: a column is missing or of another type,
            a row number is not in its shard or comes twice, a text is missing, or two images have one key.
    """
    manifest = Manifest.open(path)
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        for field in COLUMNS:
            if field.name not in schema.names or schema.field(field.name).type != field.type:
                raise _refusal(path, f"its column {field.name} is missing or not of type {field.type}")
        required = [field.name for field in COLUMNS if not field.nullable]
        keys = np.empty(manifest.rows, np.uint64)
        start = 0
        for shard in range(manifest.shards):
            table = file.read_row_group(shard, columns=required)
            for name in required:
                if table[name].null_count:
                    raise _refusal(path, f"its column {name} has no value in a row of shard {shard}")
            if not _is_in_place(table["row"], shard, manifest.shard_rows):
                raise _refusal(path, f"the row numbers of shard {shard} are not in order or not the shard's own")
            found = table["key"].to_pylist()
            keys[start : start + len(found)] = [key_hash(key) for key in found]
            start += len(found)
    keys.sort()
    if (keys[1:] == keys[:-1]).any():
        raise _refusal(path, "two of its rows have the same key")


def _is_in_place(numbers: pa.ChunkedArray, shard: int, shard_rows: int) -> bool:
    """Return whether the row numbers of a shard increase and lie between its first and its last."""
    rows = numbers.to_numpy()
    inside = len(rows) == 0 or (shard * shard_rows <= rows[0] and rows[-1] < (shard + 1) * shard_rows)
    return bool(inside and (rows[1:] > rows[:-1]).all())


def _refusal(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is damaged or was changed: {why}. Make it again with `ovseg-batch manifest`.")
