"""Lists of images in the forms that people have, and lists that no manifest can hold."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovseg_batch.errors import UsageError
from ovseg_batch.io.manifest import Manifest, build_manifest
from tests.io.test_manifest import rows


@pytest.mark.parametrize(
    ("name", "content", "extra"),
    [
        ("l.csv", "file_name;label\nb.png;dog\n", {"label": "dog"}),
        ("l.csv", "sep=;\nPath;label\nb.png;dog\n", {"label": "dog"}),
        ("l.csv", "sep=,\nfile_name,label\nb.png,dog\n", {"label": "dog"}),
        ("l.csv", "\ufeffFile Name\tlabel\nb.png\tdog\n", {"label": "dog"}),
        ("l.tsv", "image_path\tlabel\nb.png\ta,b\n", {"label": "a,b"}),
        ("l.tsv", "label|FileName\n\ndog|b.png\n", {"label": "dog"}),
        ("l.json", '[{"File": "b.png", "label": "dog"}]', {"label": "dog"}),
        ("l.json", '\n["b.png"]', {}),
        ("l.jsonl", '{"IMAGE": "b.png", "n": 1180591620717411303424}', {"n": "1180591620717411303424"}),
    ],
)
def test_usual_forms_of_lists(name: str, content: str, extra: dict[str, str], folder: Path, tmp_path: Path) -> None:
    (folder / name).write_text(content)
    [row] = rows(folder / name, out=tmp_path / "m.parquet")
    assert (row.key, row.extra) == ("b.png", extra)


def test_exact_names_of_columns_come_first(folder: Path, tmp_path: Path) -> None:
    (folder / "l.csv").write_text("Path,url,image\nx,y,b.png\n")
    [row] = rows(folder / "l.csv", out=tmp_path / "m.parquet")
    assert (row.key, row.extra) == ("b.png", {"Path": "x", "url": "y"})


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("l.csv", "file_name\nb.png\n".encode("utf-16"), "seems to be UTF-16"),
        ("l.txt", "b.png\n".encode("utf-16"), "seems to be UTF-16"),
        ("l.txt", "b.png\n".encode("utf-16-le"), "seems to be UTF-16"),
        ("l.csv", "file_name,x\nb.png,é\n".encode("latin-1"), "seems to be Latin-1"),
        ("l.txt", "b.png\né.png\n".encode("latin-1"), "seems to be Latin-1"),
        ("l.jsonl", '{"path": "é.png"}'.encode("latin-1"), "seems to be Latin-1"),
        ("l.json", '["é.png"]'.encode("latin-1"), "seems to be Latin-1"),
        ("l.csv", b"path\na\0b.png\n", "line 2: the path holds a NUL"),
        ("l.jsonl", rb'{"path": "\ud800.png"}', "line 1: the path holds half of a surrogate pair"),
        ("l.jsonl", rb'{"path": "b.png", "x": "\ud800"}', "line 1: x holds half of a surrogate pair"),
        ("l.jsonl", rb'{"path": "b.png", "\ud800": 1}', "holds half of a surrogate pair"),
        ("l.jsonl", b'{"path": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        ("l.json", b"[" * 100_000, "nested too deeply"),
        ("l.json", b'[{"path": "b.png"}, 5]', "entry 1 is no JSON object and no path"),
        ("l.jsonl", b'{"path": ["a", "b"]}', "line 1: path must be a path or URL as text"),
        ("l.jsonl", b'{"path": "b.png", "key": 5}', None),
        ("l.jsonl", b'{"path": "/"}', "line 1: / is no image but the root of all folders"),
        ("l.csv", b"path,a\nb.png," + b"x" * 200_000 + b"\n", "line 2 is not CSV: field larger"),
    ],
)
def test_hostile_lists_are_refused_in_a_sentence(
    name: str, content: bytes, text: str | None, folder: Path, tmp_path: Path
) -> None:
    (folder / name).write_bytes(content)
    if text is None:
        build_manifest([str(folder / name)], tmp_path / "m.parquet", 2)
        return
    with pytest.raises(UsageError, match=text) as raised:
        build_manifest([str(folder / name)], tmp_path / "m.parquet", 2)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("width", ["1e999", "-5", "1099511627776", '"wide"', "NaN", "[1]"])
def test_sizes_that_no_image_has_are_unknown(width: str, folder: Path, tmp_path: Path) -> None:
    (folder / "l.jsonl").write_text(f'{{"path": "b.png", "width": {width}}}')
    [row] = rows(folder / "l.jsonl", out=tmp_path / "m.parquet")
    assert row.width is None


def test_parquet_of_the_hub_is_refused_without_its_bytes(folder: Path, tmp_path: Path) -> None:
    content = (folder / "b.png").read_bytes()
    images = {
        "struct": [{"bytes": content, "path": "b.png"}],
        "null": [{"bytes": None, "path": "b.png"}],
        "plain": [content],
    }
    for name, image in images.items():
        kind = pa.binary() if name == "plain" else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pa.table({"image": pa.array(image, kind), "label": [0]}), folder / f"{name}.parquet")
        with pytest.raises(UsageError, match="column image holds the images themselves, not paths") as raised:
            build_manifest([str(folder / f"{name}.parquet")], tmp_path / "m.parquet", 2)
        assert "PNG" not in str(raised.value)


def test_columns_of_parquet_that_a_manifest_cannot_hold(folder: Path, tmp_path: Path) -> None:
    table = {
        "path": ["b.png"],
        "image": pa.array([{"bytes": b"x"}]),
        "raw": [b"x"],
        "boxes": [[1, 2]],
        "prompts": [["sky", "a, b"]],
        "day": pa.array([2**50], pa.timestamp("s")),
        "now": pa.array([1_700_000_000_000_000_001], pa.timestamp("ns")),
        "good": pa.array([1_700_000_000_000_000], pa.timestamp("us")),
        "kind": pa.array(["x"]).dictionary_encode(),
    }
    pq.write_table(pa.table(table), folder / "l.parquet")
    summary = build_manifest([str(folder / "l.parquet")], tmp_path / "m.parquet", 2)
    [row] = Manifest.open(tmp_path / "m.parquet").read_shard(0)
    assert summary.columns == 3 and "(image, raw, boxes)" in summary.notes()[0]
    assert {*row.extra} == {"prompts", "day", "now", "good", "kind"}
    assert row.extra["prompts"] == '["sky", "a, b"]' and str(row.extra["now"]).endswith("000000001")
    assert row.extra["good"].year == 2023 and row.extra["kind"] == "x"
    assert not any(
        pa.types.is_binary(one.type) or pa.types.is_nested(one.type) for one in pq.read_schema(tmp_path / "m.parquet")
    )
