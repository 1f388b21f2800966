"""The manifest: every kind of INPUT, stable keys, streaming shards, and clear errors."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command
from PIL import Image

from ovseg_batch.errors import UsageError
from ovseg_batch.io.manifest import FORMAT, Manifest, build_manifest
from ovseg_batch.types import ImageRow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/: b.png, a/c.jpg, a/b.png, and things that are no images."""
    root = tmp_path / "images"
    for name in ("b.png", "a/c.jpg", "a/b.png", ".hidden.png", ".cache/x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def rows(*inputs: Path | str, out: Path, shard_rows: int = 256) -> list[ImageRow]:
    build_manifest([str(i) for i in inputs], out, shard_rows)
    manifest = Manifest.open(out)
    return [row for shard in range(manifest.shards) for row in manifest.read_shard(shard)]


def test_folder_is_recursive_sorted_and_leaves_out_what_is_no_image(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    summary = build_manifest([str(folder)], out, 2)
    manifest = Manifest.open(out)
    assert [[row.file_name for row in manifest.read_shard(k)] for k in range(2)] == [["a/b.png", "a/c.jpg"], ["b.png"]]
    assert (summary.rows, summary.shards, summary.skipped) == (3, 2, 1)
    assert "1 file is left out, having no suffix of an image" in summary.notes()[0]
    assert pq.ParquetFile(out).metadata.num_row_groups == 2


def test_row_knows_its_file(folder: Path, tmp_path: Path) -> None:
    first = rows(folder, out=tmp_path / "m.parquet")[0]
    status = (folder / "a/b.png").stat()
    assert (first.row, first.key, first.bytes, first.mtime_ns) == (0, "a/b.png", status.st_size, status.st_mtime_ns)
    assert Path(first.path) == folder / "a/b.png"


def test_same_input_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one.parquet", "two.parquet"):
        build_manifest([str(folder)], tmp_path / name, 2)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_changed_file_changes_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    build_manifest([str(folder)], tmp_path / "one.parquet", 2)
    os.utime(folder / "b.png", ns=(1, 1))
    build_manifest([str(folder)], tmp_path / "two.parquet", 2)
    assert Manifest.open(tmp_path / "one.parquet").fingerprint != Manifest.open(tmp_path / "two.parquet").fingerprint


def test_glob(folder: Path, tmp_path: Path) -> None:
    found = rows(f"{folder}/**/*.png", out=tmp_path / "m.parquet")
    assert [row.file_name for row in found] == ["a/b.png", "b.png"]


def test_lists_are_relative_to_their_own_folder_and_keep_their_columns(folder: Path, tmp_path: Path) -> None:
    (folder / "list.txt").write_text("a/b.png\n\nb.png\n")
    with (folder / "list.csv").open("w") as file:
        csv.writer(file).writerows([["file_name", "prompt", "width"], ["a/b.png", "a cat, asleep", "6"]])
    lines = [{"path": "a/b.png", "seed": 7, "tags": ["x", "y"]}, {"path": str(folder / "b.png"), "key": "mine"}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pq.write_table(pa.table({"image": ["a/b.png"], "weight": [0.5], "row": [9]}), folder / "list.parquet")
    assert [r.key for r in rows(folder / "list.txt", out=tmp_path / "t")] == ["a/b.png", "b.png"]
    [row] = rows(folder / "list.csv", out=tmp_path / "c")
    assert (row.extra, row.width, row.height) == ({"prompt": "a cat, asleep"}, 6, None)
    one, two = rows(folder / "list.jsonl", out=tmp_path / "j")
    assert one.extra == {"seed": 7, "tags": '["x", "y"]'}
    assert (two.key, two.file_name, two.extra["seed"]) == ("mine", "b.png", None)
    [row] = rows(folder / "list.parquet", out=tmp_path / "p")
    assert (row.row, row.extra) == (0, {"weight": 0.5, "source_row": 9})


def test_coco_and_imagefolder(folder: Path, tmp_path: Path) -> None:
    images = [{"id": 41, "file_name": "a/c.jpg", "width": 6, "height": 4}]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": []}))
    [row] = rows(folder / "coco.json", out=tmp_path / "c")
    assert (row.file_name, row.width, row.height, row.extra) == ("a/c.jpg", 6, 4, {"coco_id": 41})
    (folder / "metadata.csv").write_text("file_name,label\nb.png,dog\n")
    [row] = rows(folder, out=tmp_path / "h")
    assert (row.file_name, row.extra) == ("b.png", {"label": "dog"})


def test_several_inputs_keep_names_apart(folder: Path, tmp_path: Path) -> None:
    found = rows(folder / "a", folder, out=tmp_path / "m.parquet")
    assert [row.file_name for row in found] == [
        "a/b.png",
        "a/c.jpg",
        "images/a/b.png",
        "images/a/c.jpg",
        "images/b.png",
    ]


def test_listed_twice_is_taken_once_and_said(folder: Path, tmp_path: Path) -> None:
    (folder / "list.txt").write_text("b.png\na/b.png\nb.png\n")
    summary = build_manifest([str(folder / "list.txt")], tmp_path / "m.parquet", 2)
    assert (summary.rows, summary.duplicates) == (2, 1)
    assert "b.png" in summary.notes()[0]
    assert [row.row for row in Manifest.open(tmp_path / "m.parquet").read_shard(0)] == [0, 1]


def test_two_images_with_one_key_are_an_error_that_names_both(folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("file_name,key\nb.png,x\na/b.png,y\na/c.jpg,x\n")
    with pytest.raises(UsageError, match=r"Rows 0 .*/b\.png.* and 2 .*c\.jpg.*'x'"):
        build_manifest([str(folder / "list.csv")], tmp_path / "m.parquet", 2)
    assert not (tmp_path / "m.parquet").exists()


def test_missing_file_stays_a_row_and_is_said(folder: Path, tmp_path: Path) -> None:
    (folder / "list.txt").write_text("b.png\ngone.png\n")
    summary = build_manifest([str(folder / "list.txt")], tmp_path / "m.parquet", 2)
    assert (summary.rows, summary.missing) == (2, 1)
    assert "list.txt line 2: gone.png" in summary.notes()[0]
    assert Manifest.open(tmp_path / "m.parquet").read_shard(0)[1].bytes is None


def test_name_that_is_not_utf8(folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "b.png").rename(folder / name)
    found = rows(folder, out=tmp_path / "m.parquet")[-1]
    assert found.file_name == r"caf\xe9.png"
    assert Path(found.path).read_bytes()


def test_links_in_a_circle(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "up").symlink_to(folder)
    assert len(rows(folder, out=tmp_path / "m.parquet")) == 3


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda f: f / "empty", "no image in"),
        (lambda f: f / "imges", "no file or folder"),
        (lambda f: f / "bad.csv", "has no column with the images' paths.*file_nam.*Did you mean 'file_name'"),
        (lambda f: f / "bad.jsonl", "line 2 is not JSON"),
        (lambda f: f / "bad.parquet", "cannot be read as Parquet"),
        (lambda f: f / "bad.json", "not a COCO file"),
        (lambda f: f / "gone.txt", "None of the 2 images"),
        (lambda f: f / "notes.md", "is no folder, image or list"),
    ],
)
def test_bad_input_says_what_and_where(folder: Path, tmp_path: Path, make: object, text: str) -> None:
    (folder / "empty").mkdir()
    (folder / "bad.csv").write_text("file_nam,label\nb.png,dog\n")
    (folder / "bad.jsonl").write_text('{"path": "b.png"}\nnope\n')
    (folder / "bad.parquet").write_bytes(b"PAR1")
    (folder / "bad.json").write_text("{}")
    (folder / "gone.txt").write_text("x.png\ny.png\n")
    (folder / "notes.md").write_text("")
    with pytest.raises(UsageError, match=text):
        build_manifest([str(make(folder))], tmp_path / "m.parquet", 2)  # type: ignore[operator]
    assert not list(tmp_path.glob("*m.parquet*"))


def test_a_file_of_a_person_is_not_replaced(folder: Path, tmp_path: Path, command: Command) -> None:
    photograph = folder / "b.png"
    before = photograph.read_bytes()
    told = command("manifest", folder, "-o", photograph)
    assert told.returncode == 2 and f"{photograph} exists and is no earlier file of this command" in told.stderr
    assert photograph.read_bytes() == before
    for _ in range(2):
        assert command("manifest", folder, "-o", tmp_path / "m.parquet").returncode == 0


def test_own_manifest_is_recognised(folder: Path, tmp_path: Path) -> None:
    build_manifest([str(folder)], tmp_path / "m.parquet", 2)
    pq.write_table(pa.table({"path": ["x"]}), tmp_path / "other.parquet")
    assert Manifest.recognises(tmp_path / "m.parquet")
    assert not Manifest.recognises(tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="not a manifest"):
        Manifest.open(tmp_path / "other.parquet")


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
    assert command("run", tmp_path / "m.parquet", "-o", tmp_path / "run", "--labels", "sky").returncode == 2
