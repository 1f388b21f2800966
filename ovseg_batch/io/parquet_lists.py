"""Read lists of images in Parquet as streams, with the columns that a manifest can hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.errors import UsageError
from ovseg_batch.io.columns import find_column, make_entry, path_column
from ovseg_batch.io.entries import SHOWN, Entry, Source, plain

#: types whose values Python can hold only if they are whole microseconds
MICROSECONDS = {
    "timestamp[ns]": pa.timestamp("us"),
    "duration[ns]": pa.duration("us"),
    "time64[ns]": pa.time64("us"),
}
PROMPTS = "prompts"  # the only column of text lists that is kept; as JSON


def read_parquet(path: Path) -> Source:
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        if len(set(schema.names)) < len(schema.names):
            raise UsageError(f"{path} has two columns of one name: {', '.join(map(plain, schema.names))}.")
        return _table(path, file, schema)
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(path, error) from None


def _no_parquet(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path} cannot be read as Parquet: {plain(str(error).strip())[:SHOWN]}")


def _table(path: Path, file: pq.ParquetFile, schema: pa.Schema) -> Source:
    texts = [field.name for field in schema if _is_text(field.type)]
    if find_column(texts) is None and (holder := find_column(schema.names)) is not None:
        kind = schema.field(holder).type
        images = _is_binary(kind) or (pa.types.is_struct(kind) and any(_is_binary(field.type) for field in kind))
        what = "the images themselves" if images else plain(str(kind)[:SHOWN])
        raise UsageError(
            f"{path}: the column {plain(holder)} holds {what}, not paths. Save each image as a file, and give their "
            "folder or a list of their paths."
        )
    column = path_column(path, texts)
    kept = {field.name: kind for field in schema if (kind := _kept_type(file, field)) is not None}
    source = Source(str(path), [(name, kind) for name, kind in kept.items() if name != column], iter(()))
    for name in schema.names:
        if name not in kept:
            source.counts.count("columns", plain(name))
    source.entries = _parquet_entries(path, file, column, kept)
    return source


def _parquet_entries(path: Path, file: pq.ParquetFile, column: str, kept: Mapping[str, pa.DataType]) -> Iterator[Entry]:
    number = 0
    try:
        for batch in file.iter_batches(batch_size=4096, columns=[*kept]):
            columns = [_values(batch.column(name), kind) for name, kind in kept.items()]
            for values in zip(*columns, strict=True):
                yield make_entry(path, dict(zip(kept, values, strict=True)), column, f"{path} row {number}")
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _no_parquet(path, error) from None


def _kept_type(file: pq.ParquetFile, field: pa.Field) -> pa.DataType | None:
    """Return the type that a column has in the manifest, or None for binary and nested columns."""
    kind = field.type
    if pa.types.is_temporal(kind):
        return kind if _is_plain_time(file, field.name) else pa.string()
    if pa.types.is_list(kind) and field.name == PROMPTS and _is_text(kind.value_type):
        return pa.string()
    whole = kind.value_type if pa.types.is_dictionary(kind) else kind
    if isinstance(whole, pa.BaseExtensionType) or _is_binary(whole) or pa.types.is_nested(whole):
        return None
    return kind


def _is_plain_time(file: pq.ParquetFile, name: str) -> bool:
    """Return whether Python can hold every time in a column: years 1 to 9999, in whole microseconds."""
    try:
        for batch in file.iter_batches(batch_size=1 << 16, columns=[name]):
            column = batch.column(0)
            whole = MICROSECONDS.get(str(column.type))
            (column if whole is None else column.cast(whole)).to_pylist()
    except (ValueError, OverflowError):
        return False
    return True


def _values(column: pa.Array, kind: pa.DataType) -> list[Any]:
    if column.type == kind or not pa.types.is_temporal(column.type):
        values = column.to_pylist()
        return [json.dumps(one, ensure_ascii=False) if isinstance(one, list) else one for one in values]
    units = None if pa.types.is_interval(column.type) else column.cast(pa.int64())
    try:
        texts: list[Any] = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        texts = [None if one is None else str(one) for one in ([] if units is None else units.to_pylist())]
    return texts


def _is_text(kind: pa.DataType) -> bool:
    whole = kind.value_type if pa.types.is_dictionary(kind) else kind
    return whole in (pa.string(), pa.large_string(), pa.string_view())


def _is_binary(kind: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)
