"""Manifests that are damaged or that no command of ours wrote: one sentence, before any work begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovseg_batch.errors import UsageError
from ovseg_batch.io.manifest import COLUMNS, FORMAT, Manifest, build_manifest
from ovseg_batch.io.manifest_check import check_rows
from ovseg_batch.io.updating import update_manifest
from tests.conftest import Command
from tests.io.test_manifest import rows


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 20_000,
        b'{"shard_rows": 0, "fingerprint": "x"}',
        b'{"shard_rows": "x", "fingerprint": "x"}',
    ],
)
def test_a_forged_manifest_is_refused_in_words(record: bytes, tmp_path: Path, command: Command) -> None:
    table = pa.table({"path": ["x.png"]}).replace_schema_metadata({FORMAT: record})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="not a manifest"):
        Manifest.open(tmp_path / "m.parquet")
    done = command("run", tmp_path / "m.parquet", "-o", tmp_path / "run", "--labels", "sky")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("ovseg-batch: ")


Lines = list[dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: [{**lines[0], "row": 1}, *lines[1:]], "m.parquet is damaged or was changed: the row numbers"),
        (lambda lines: [{**line, "row": line["row"] + (1 << 40)} for line in lines], "row numbers"),
        (lambda lines: [{**lines[0], "row": -1}, *lines[1:]], "row numbers"),
        (lambda lines: [{**line, "row": str(line["row"])} for line in lines], "no column row of the type int64"),
        (lambda lines: [{**lines[0], "key": None}, *lines[1:]], "m.parquet is damaged in shard 0: key is empty"),
        (lambda lines: [{**line, "key": "same"} for line in lines], "same key"),
        (
            lambda lines: [{name: line[name] for name in line if name != "path"} for line in lines],
            "no column path of the type string",
        ),
    ],
)
def test_forged_rows_are_refused_before_work_begins(
    change: Callable[[Lines], Lines], why: str, folder: Path, tmp_path: Path, command: Command
) -> None:
    build_manifest([str(folder)], tmp_path / "true.parquet", 256)
    with pq.ParquetFile(tmp_path / "true.parquet") as file:
        forged = pa.Table.from_pylist(change(file.read().to_pylist()))
        record = {FORMAT: file.metadata.metadata[FORMAT]}
    for field in forged.schema:  # as the writer types them, where the values are
        kind = COLUMNS.field(field.name).type if field.name in COLUMNS.names else field.type
        if kind != field.type and not pa.types.is_string(field.type):
            forged = forged.set_column(
                forged.schema.get_field_index(field.name), field.name, forged[field.name].cast(kind)
            )
    pq.write_table(forged.replace_schema_metadata(record), tmp_path / "m.parquet")
    done = command("run", tmp_path / "m.parquet", "-o", tmp_path / "run", "--labels", "sky")
    assert done.returncode == 2 and "m.parquet is" in done.stderr and why in done.stderr
    assert not (tmp_path / "run" / "manifest.parquet").exists()


def test_a_true_manifest_passes_also_after_an_update(folder: Path, tmp_path: Path) -> None:
    ours, fresh = tmp_path / "ours.parquet", tmp_path / "fresh.parquet"
    build_manifest([str(folder)], ours, 1)
    (folder / "b.png").unlink()
    build_manifest([str(folder)], fresh, 1)
    update_manifest(ours, fresh)
    check_rows(ours)
    assert Manifest.open(ours).shards > Manifest.open(fresh).shards  # one is empty


def test_a_damaged_shard_of_a_manifest_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    rows(folder, out=tmp_path / "m.parquet", shard_rows=1)
    content = bytearray((tmp_path / "m.parquet").read_bytes())
    content[20:120] = bytes(100)
    (tmp_path / "m.parquet").write_bytes(content)
    manifest = Manifest.open(tmp_path / "m.parquet")
    for reading in (manifest.read_shard, manifest.read_lines, lambda _: list(manifest.read_paths())):
        with pytest.raises(UsageError, match=r"m\.parquet is damaged in shard 0"):
            reading(0)
    fresh = tmp_path / "fresh.parquet"
    rows(folder, out=fresh, shard_rows=1)
    with pytest.raises(UsageError, match=r"m\.parquet is damaged in shard 0"):
        update_manifest(tmp_path / "m.parquet", fresh)


@pytest.mark.parametrize("forged", ["no path", "number", "null"])
def test_a_manifest_without_a_path_is_refused(forged: str, folder: Path, tmp_path: Path) -> None:
    rows(folder, out=tmp_path / "m.parquet")
    file = pq.ParquetFile(tmp_path / "m.parquet")
    table, place = file.read(), file.schema_arrow.names.index("path")
    kind = pa.int64() if forged == "number" else pa.string()
    table = table.remove_column(place) if forged == "no path" else table.set_column(place, "path", pa.nulls(3, kind))
    with pq.ParquetWriter(tmp_path / "m.parquet", table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({FORMAT: file.metadata.metadata[FORMAT]})
    with pytest.raises(UsageError, match="path"):
        Manifest.open(tmp_path / "m.parquet").read_shard(0)
