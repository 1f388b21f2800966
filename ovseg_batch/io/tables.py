"""Read and write the Parquet table of a shard: one line per row, with the same first columns for every stage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.io.atomic import create
from ovseg_batch.types import Annotation, Proposal, RowResult, WordMask

TABLE = ".parquet"  # suffix of a shard's table

RESULT_COLUMNS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
        pa.field("content", pa.string()),
    ]
)

#: the fields of `types.Annotation`
ANNOTATION = pa.struct(
    [
        pa.field("category", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("bbox", pa.list_(pa.float64(), 4)),
        pa.field("area", pa.int64()),
        pa.field("rle", pa.binary()),
        pa.field("source", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("margin", pa.float32()),
        pa.field("coverage", pa.float32()),
        pa.field("predicted_iou", pa.float32()),
        pa.field("stability", pa.float32()),
        pa.field("reason", pa.string()),
    ]
)


#: the fields of `types.Proposal`
PROPOSAL = pa.struct(
    [
        pa.field("bbox", pa.list_(pa.float64(), 4)),
        pa.field("area", pa.int64()),
        pa.field("rle", pa.binary()),
        pa.field("predicted_iou", pa.float32()),
        pa.field("stability", pa.float32()),
        pa.field("point", pa.list_(pa.float32(), 2)),
    ]
)

#: the fields of `types.WordMask`
WORD_MASK = pa.struct(
    [
        pa.field("query", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("box", pa.list_(pa.float32(), 4)),
        pa.field("area", pa.int64()),
        pa.field("rle", pa.binary()),
    ]
)

#: the fields of `types.PromptPoint`
PROMPT = pa.struct(
    [
        pa.field("x", pa.float32()),
        pa.field("y", pa.float32()),
        pa.field("label", pa.string()),
        pa.field("outcome", pa.string()),
    ]
)

Record = Annotation | Proposal | WordMask
#: column → the record of each of its elements
RECORDS: dict[str, type[Record]] = {"annotations": Annotation, "proposals": Proposal, "word_masks": WordMask}
FIELDS = {name: tuple(field.name for field in fields(record)) for name, record in RECORDS.items()}


class ResultWriter:
    """Writes the rows of one shard to a Parquet file. `buffer_rows` rows are held at a time."""

    def __init__(self, path: Path, columns: pa.Schema, buffer_rows: int = 64) -> None:
        self._schema = pa.schema([*RESULT_COLUMNS, *columns])
        self._file = create(path)
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        self._buffer: list[dict[str, Any]] = []
        self._buffer_rows = buffer_rows

    def write(self, result: RowResult) -> None:
        self._buffer.append(
            {
                "row": result.row,
                "key": result.key,
                "status": "ok" if result.ok else "failed",
                "code": str(result.code) if result.code else None,
                "message": result.message or None,
                "content": result.content,
                **{name: _plain(name, value) for name, value in result.values.items()},
            }
        )
        if len(self._buffer) >= self._buffer_rows:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            self._writer.write_table(pa.Table.from_pylist(self._buffer, self._schema))
            self._buffer.clear()

    def close(self) -> None:
        with self._file:
            self._flush()
            self._writer.close()


def read_results(
    path: Path, columns: Sequence[str] | None = None, masks: type[Any] = Annotation
) -> list[dict[str, Any]]:
    """Return the lines of one shard's table in row order, as dictionaries.

    Args:
        path: the table.
        columns: columns to read. None: all.
        masks: the dataclass to return for each mask: `Annotation`, or one with some of its fields. No others are read.

    Raises:
        ValueError: the file is not a table of a shard.
    """
    records = {**RECORDS, "annotations": masks}
    with pq.ParquetFile(path) as file:  # `read_table` would import pandas if it is installed
        table = file.read(_leaves(file.schema, columns, masks))
    names = table.column_names
    values = [
        _records(column, records[name]) if name in records else _values(column.combine_chunks())
        for name, column in zip(names, table.columns, strict=True)
    ]
    return [dict(zip(names, line, strict=True)) for line in zip(*values, strict=True)]


def _leaves(schema: pq.ParquetSchema, columns: Sequence[str] | None, masks: type[Any]) -> list[str]:
    """Return the paths of the Parquet columns to read, such as `annotations.list.element.area`."""
    unread = Annotation.__dataclass_fields__.keys() - masks.__dataclass_fields__.keys()
    paths = [schema.column(k).path for k in range(len(schema))]
    parts = {path: path.split(".") for path in paths}
    return [
        path
        for path, (name, *inside) in parts.items()
        if (columns is None or name in columns) and not (name == "annotations" and unread.intersection(inside[2:3]))
    ]


def _plain(name: str, value: Any) -> Any:
    """Convert the value of a column for Parquet. `dataclasses.asdict` would copy every value, which takes longer."""
    if name not in RECORDS:
        return value
    return [{field: getattr(one, field) for field in FIELDS[name]} for one in value]


def _records(column: pa.ChunkedArray, kind: type[Any]) -> list[list[Any] | None]:
    """Convert a column of lists of records from Parquet. Failed rows have None."""
    if not (pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)):
        raise ValueError(f"its masks are {column.type}")
    found = {field.name for field in column.type.value_type}
    fields = kind.__dataclass_fields__
    missing = {name for name, field in fields.items() if field.default is MISSING} - found
    if other := sorted(missing | found - fields.keys()):
        raise ValueError(f"its masks have other fields: {', '.join(other)}")
    lines: list[list[Any] | None] = []
    for chunk in column.chunks:
        parts = chunk.flatten()
        values = [
            _frozen(parts.field(name)) if name in found else [field.default] * len(parts)
            for name, field in fields.items()
        ]
        made = map(kind, *values)
        lines += [None if n is None else list(itertools.islice(made, n)) for n in chunk.value_lengths().to_pylist()]
    return lines


def _frozen(part: pa.Array) -> list[Any]:
    """Return the values of a field of records, which are immutable: lists become tuples."""
    if pa.types.is_fixed_size_list(part.type) and part.null_count == 0:
        return list(zip(*[iter(_values(part.flatten()))] * part.type.list_size, strict=True))
    return [tuple(one) if isinstance(one, list) else one for one in _values(part)]


def _values(column: pa.Array) -> list[Any]:
    """Return the values of a column. `to_pylist` takes several times as long for numbers and repeated texts."""
    kind = column.type
    if column.null_count == 0 and len(column):
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return list(column.to_numpy(zero_copy_only=False).tolist())
        if pa.types.is_string(kind):
            words = column.dictionary_encode()
            texts = words.dictionary.to_pylist()
            return [texts[k] for k in words.indices.to_numpy(zero_copy_only=False).tolist()]
    return list(column.to_pylist())
