"""The manifest: every kind of INPUT, stable keys, streaming shards, and clear errors."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command
from PIL import Image

from ovseg_batch.errors import UsageError
from ovseg_batch.io.entries import plain
from ovseg_batch.io.images import Limits
from ovseg_batch.io.manifest import COLUMNS, FORMAT, Manifest, Summary, build_manifest
from ovseg_batch.io.manifest_check import check_rows
from ovseg_batch.io.updating import update_manifest
from ovseg_batch.types import ImageRow

LIMITS = Limits(10_000, 10_000)


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


def test_texts_of_parquet_that_are_not_utf8(folder: Path, tmp_path: Path) -> None:
    broken = pa.array([b"b.png", b"\xff.png"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"path": broken}), folder / "l.parquet")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        build_manifest([str(folder / "l.parquet")], tmp_path / "m.parquet", 2)


def test_half_of_a_surrogate_pair_is_shown_as_an_escape() -> None:
    assert plain("a\ud800b\udcff.png") == "a\\ud800b\\xff.png"


# --- folders ---


def counted(*inputs: Path | str, out: Path, exclude: tuple[str, ...] = ()) -> tuple[list[str], Summary]:
    summary = build_manifest([str(one) for one in inputs], out, 256, exclude=exclude)
    return list(Manifest.open(out).read_column("key")), summary


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make a folder one that may not be read, also for root."""
    paths: set[str] = set()
    stat, scandir = os.stat, os.scandir

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *args: Any, **named: Any) -> Any:
            inside = isinstance(path, str | Path) and any(str(path).startswith(f"{one}/") for one in paths)
            if inside or (call is scandir and str(path) in paths):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args, **named)

        return checked

    monkeypatch.setattr(os, "stat", guarded(stat))
    monkeypatch.setattr(os, "scandir", guarded(scandir))
    return lambda path: paths.add(str(path))


@pytest.mark.parametrize("pattern", ["", "**/*.png"])
@pytest.mark.parametrize("place", ["lost+found", "a/deeper"])
def test_a_folder_that_may_not_be_read_is_left_out_and_said(
    place: str, pattern: str, folder: Path, tmp_path: Path, locked: Callable[[Path], None]
) -> None:
    (folder / place).mkdir(parents=True)
    shutil.copy(folder / "b.png", folder / place / "b.png")
    locked(folder / place)
    keys, summary = counted(folder / pattern, out=tmp_path / "m.parquet")
    assert {"a/b.png", "b.png"} <= {*keys} and summary.locked == 1
    assert any(
        note.startswith("1 folder is left out, being unreadable (") and note.endswith(f"/{place}: Permission denied)")
        for note in summary.notes()
    )


def test_a_folder_that_may_not_be_read_as_the_only_input(
    folder: Path, tmp_path: Path, locked: Callable[[Path], None]
) -> None:
    locked(folder)
    with pytest.raises(UsageError, match=r"no image in .*Permission denied"):
        build_manifest([str(folder)], tmp_path / "m.parquet", 2)
    with pytest.raises(UsageError, match=r"b\.png cannot be read: Permission denied"):
        build_manifest([str(folder / "b.png")], tmp_path / "m.parquet", 2)


@pytest.mark.parametrize("seconds", [10_413_792_000, -10_000_000_000, -1, 4_102_444_800])
def test_times_beyond_the_column_are_unknown(seconds: int, folder: Path, tmp_path: Path) -> None:
    try:
        os.utime(folder / "b.png", (seconds, seconds))
    except OSError:
        pytest.skip("the file system does not hold such times")
    times = {row.key: row.mtime_ns for row in rows(folder, out=tmp_path / "m.parquet")}
    time = (folder / "b.png").stat().st_mtime_ns  # file systems may clamp it
    assert times["b.png"] == (time if abs(time) < 1 << 63 else None)


def test_folders_deeper_than_the_stack(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for _ in range(1_500):
        Path("d").mkdir()
        os.chdir("d")
    Path("deep.png").write_bytes((folder / "b.png").read_bytes())
    keys, _ = counted(folder, out=tmp_path / "m.parquet")
    assert keys[-1] == "d/" * 1_500 + "deep.png" and len(keys) == 4
    os.chdir(folder)
    subprocess.run(["rm", "-r", "d"], check=True)


def test_files_of_systems_are_left_out_and_said(folder: Path, tmp_path: Path) -> None:
    names = ("@eaDir/b.png", "a/#recycle/b.png", "$RECYCLE.BIN/b.png", ".Trash-1000/b.png", ".thumbnails/b.png")
    for name in (*names, "._b.png", "~$b.png", "Thumbs.db"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "b.png", folder / name)
    keys, summary = counted(folder, out=tmp_path / "m.parquet")
    assert keys == ["a/b.png", "a/c.jpg", "b.png"] and summary.system == 8
    assert any("8 files or folders are left out, being thumbnails or trash of a system" in n for n in summary.notes())
    assert counted(folder / "**" / "*", out=tmp_path / "m.parquet")[0] == keys
    assert counted(folder / "@eaDir", out=tmp_path / "m.parquet")[0] == ["b.png"]


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["a"], ["b.png"]),
        (["a/"], ["b.png"]),
        (["*.jpg"], ["a/b.png", "b.png"]),
        (["b.png"], ["a/c.jpg"]),
        (["a/b.png"], ["a/c.jpg", "b.png"]),
        (["./a/*"], ["b.png"]),
        (["**/c.jpg", "nothing"], ["a/b.png", "b.png"]),
        (["{root}/a"], ["b.png"]),
        (["A"], ["a/b.png", "a/c.jpg", "b.png"]),
    ],
)
def test_patterns_leave_out_files_and_folders(
    patterns: list[str], kept: list[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "list.txt").write_text("a/b.png\na/c.jpg\nb.png\n")
    exclude = tuple(one.format(root=folder) for one in patterns)
    for source in (folder, folder / "**" / "*.*", folder / "list.txt"):
        keys, summary = counted(source, out=tmp_path / "m.parquet", exclude=exclude)
        assert keys == kept and (summary.excluded > 0) == (len(kept) < 3)


def test_a_name_with_brackets_is_preferred_to_the_pattern(folder: Path, tmp_path: Path) -> None:
    for name in ("photos [2024]", "photos 2"):
        (folder / name).mkdir()
        shutil.copy(folder / "b.png", folder / name / f"{name[-1:].replace(']', '4')}.png")
    shutil.copy(folder / "b.png", folder / "photos 2" / "[x].png")
    shutil.copy(folder / "b.png", folder / "photos 2" / "x.png")
    out = tmp_path / "m.parquet"
    assert counted(f"{folder}/photos [2024]/*.png", out=out)[0] == ["4.png"]
    assert counted(f"{folder}/photos [2024]", out=out)[0] == ["4.png"]
    assert counted(f"{folder}/photos [2]/?.png", out=out)[0] == ["photos 2/2.png", "photos 2/x.png"]
    assert counted(f"{folder}/*/[x].png", out=out)[0] == ["photos 2/[x].png"]


def test_missing_files_are_counted_once(folder: Path, tmp_path: Path) -> None:
    (folder / "list.txt").write_text("gone.png\ngone.png\n")
    with pytest.raises(UsageError, match="None of the 1 images"):
        build_manifest([str(folder / "list.txt")], tmp_path / "m.parquet", 2)
    (folder / "list.txt").write_text("gone.png\nb.png\ngone.png\n")
    _, summary = counted(folder / "list.txt", out=tmp_path / "m.parquet")
    assert (summary.rows, summary.missing, summary.duplicates) == (2, 1, 1)
    assert f"({folder / 'list.txt'} line 1: gone.png)" in summary.notes()[0]


# --- names of several inputs ---


@pytest.fixture
def splits(folder: Path) -> Path:
    """train/images and val/images with files of one name, and one more folder `images` with another."""
    for place in ("train/images/1.png", "val/images/1.png", "val/images/sub/2.png", "test/images/3.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "b.png", folder / place)
    return folder


def test_inputs_with_equal_names_are_told_apart_by_their_folders(splits: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    keys, _ = counted(splits / "train/images", splits / "test/images", out=out)
    assert keys == ["images/1.png", "images/3.png"]
    keys, _ = counted(splits / "train/images", splits / "test/images", splits / "val/images", out=out)
    assert keys == ["train/images/1.png", "images/3.png", "val/images/1.png", "val/images/sub/2.png"]
    found = rows(splits / "val/images", splits / "train/images", out=out)
    assert [row.row for row in found] == [0, 1, 2] and found[2].path == str(splits / "train/images/1.png")
    assert [row.file_name for row in found] == [row.key for row in found]


def test_single_files_and_lists_with_equal_names(splits: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    files = [splits / "train/images/1.png", splits / "val/images/1.png", splits / "b.png"]
    assert counted(*files, out=out)[0] == ["train/images/1.png", "val/images/1.png", "b.png"]
    assert counted(*files, files[0], out=out)[0] == ["train/images/1.png", "val/images/1.png", "b.png"]
    for part in ("train", "val"):
        (splits / part / "list.txt").write_text("images/1.png\n")
    lists = [splits / "train/list.txt", splits / "val/list.txt"]
    assert counted(*lists, out=out)[0] == ["train/images/1.png", "val/images/1.png"]
    patterns = [splits / "train/*/*.png", splits / "val/*/*.png"]
    assert counted(*patterns, out=out)[0] == ["train/images/1.png", "val/images/1.png"]


def test_one_key_for_two_images_of_a_list_stays_an_error(splits: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (splits / part / "list.csv").write_text("path,key\nimages/1.png,same\n")
    with pytest.raises(UsageError, match="have the same key 'same'"):
        counted(splits / "train/list.csv", splits / "val/list.csv", out=tmp_path / "m.parquet")


# --- lists ---


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
