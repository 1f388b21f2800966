"""The tables of shards, and the fields of masks that are read from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovseg_batch.errors import FailureCode
from ovseg_batch.io.tables import ANNOTATION, ResultWriter, read_results
from ovseg_batch.types import Annotation, MaskSummary, RowResult

COLUMNS = pa.schema([pa.field("height", pa.int32()), pa.field("annotations", pa.list_(ANNOTATION))])
MASKS = [
    Annotation("sky", 0.5, (0.0, 1.0, 2.0, 3.0), 6, b"05", "sam", 0.25, 0.125, None, 0.75, 1.0, None),
    Annotation("road", 0.25, (1.0, 1.0, 1.0, 1.0), 1, b"\x00\xff", "dense", 1.0, 0.5, 0.5, None, None, "largest"),
]


def write(path: Path, schema: pa.Schema = COLUMNS) -> Path:
    writer = ResultWriter(path, schema, buffer_rows=2)
    for row, masks in enumerate((MASKS, [], MASKS[1:])):
        writer.write(RowResult(row, f"key {row}", {"height": 4, "annotations": masks}))
    writer.write(RowResult(3, "key 3", code=FailureCode.EMPTY, message="0 bytes"))
    writer.close()
    return path


def test_records_come_back(tmp_path: Path) -> None:
    lines = read_results(write(tmp_path / "table.parquet"))
    assert [line["annotations"] for line in lines] == [MASKS, [], MASKS[1:], None]
    assert [(line["row"], line["status"], line["height"]) for line in lines] == [
        *((row, "ok", 4) for row in range(3)),
        (3, "failed", None),
    ]


def test_only_the_fields_of_the_given_record_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = write(tmp_path / "table.parquet"), list[str]()
    whole = pq.ParquetFile.read

    def record(file: pq.ParquetFile, columns: list[str]) -> pa.Table:
        read.extend(columns)
        return whole(file, columns)

    monkeypatch.setattr(pq.ParquetFile, "read", record)
    lines = read_results(path, ["row", "annotations"], MaskSummary)
    brief = [MaskSummary(one.category, one.confidence, one.area) for one in MASKS]
    assert [line["annotations"] for line in lines] == [brief, [], brief[1:], None]
    assert [line.keys() for line in lines] == [{"row", "annotations"}] * 4
    fields = ("category", "area", "confidence")
    assert read == ["row", *(f"annotations.list.element.{field}" for field in fields)]


def test_the_table_of_an_earlier_version_has_fewer_fields(tmp_path: Path) -> None:
    earlier = pa.struct([field for field in ANNOTATION if field.name != "reason"])
    path = write(tmp_path / "table.parquet", pa.schema([pa.field("annotations", pa.list_(earlier))]))
    [_, last] = read_results(path)[0]["annotations"]
    assert last.reason is None and last.bbox == MASKS[1].bbox


@dataclass(frozen=True, slots=True)
class Foreign:
    colour: str


@pytest.mark.parametrize("masks", [Annotation, MaskSummary, Foreign])
@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.list_(pa.int64()), pa.list_(pa.struct([("category", pa.string()), ("other", pa.int8())]))]
)
def test_masks_of_another_program_are_an_error(kind: pa.DataType, masks: type, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"row": [0], "annotations": pa.array([None], kind)}), path)
    with pytest.raises(ValueError, match="its masks"):
        read_results(path, None, masks)
