"""Read and write the Parquet table of a shard: one line per row, with the same first columns for every stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
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

Record = Annotation | Proposal | WordMask
#: column → the record of each of its elements
RECORDS: dict[str, type[Record]] = {"annotations": Annotation, "proposals": Proposal, "word_masks": WordMask}


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


def read_results(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the lines of one shard's table in row order, as dictionaries of the given columns (None: all).

    Raises:
        ValueError: the file is not a table of a shard.
    """
    with pq.ParquetFile(path) as file:  # `read_table` would import pandas if it is installed
        rows: list[dict[str, Any]] = file.read(list(columns) if columns else None).to_pylist()
    try:
        return [{name: _record(name, value) for name, value in row.items()} for row in rows]
    except (TypeError, KeyError) as error:
        raise ValueError(f"its masks have other fields: {error}") from None


def _plain(name: str, value: Any) -> Any:
    """Convert the value of a column for Parquet."""
    return [asdict(one) for one in value] if name in RECORDS else value


def _record(name: str, value: Any) -> Any:
    """Convert the value of a column from Parquet. Failed rows have None."""
    return [_made(RECORDS[name], one) for one in value] if name in RECORDS and value is not None else value


def _made(kind: Callable[..., Record], fields: Mapping[str, Any]) -> Record:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
