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

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovseg_batch.errors import UsageError
from ovseg_batch.io.entries import plain
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.manifest import Manifest, Summary, build_manifest
from ovseg_batch.types import ImageRow
from tests.conftest import Command

LIMITS = Limits(10_000, 10_000)


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
    assert "1 file is skipped: no suffix of an image" in summary.notes()[0]
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


def test_listed_twice_is_taken_once_with_a_note(folder: Path, tmp_path: Path) -> None:
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


def test_missing_file_stays_a_row_with_a_note(folder: Path, tmp_path: Path) -> None:
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
    done = command("manifest", folder, "-o", photograph)
    assert done.returncode == 2 and f"{photograph} exists, and this command did not write it" in done.stderr
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
def test_a_folder_that_may_not_be_read_is_left_out_with_a_note(
    place: str, pattern: str, folder: Path, tmp_path: Path, locked: Callable[[Path], None]
) -> None:
    (folder / place).mkdir(parents=True)
    shutil.copy(folder / "b.png", folder / place / "b.png")
    locked(folder / place)
    keys, summary = counted(folder / pattern, out=tmp_path / "m.parquet")
    assert {"a/b.png", "b.png"} <= {*keys} and summary.locked == 1
    assert any(
        note.startswith("1 folder is skipped: unreadable (") and note.endswith(f"/{place}: Permission denied)")
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


def test_files_of_systems_are_left_out_with_a_note(folder: Path, tmp_path: Path) -> None:
    names = ("@eaDir/b.png", "a/#recycle/b.png", "$RECYCLE.BIN/b.png", ".Trash-1000/b.png", ".thumbnails/b.png")
    for name in (*names, "._b.png", "~$b.png", "Thumbs.db"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "b.png", folder / name)
    keys, summary = counted(folder, out=tmp_path / "m.parquet")
    assert keys == ["a/b.png", "a/c.jpg", "b.png"] and summary.system == 8
    assert any(
        "8 files or folders are skipped: thumbnails or trash of the operating system" in n for n in summary.notes()
    )
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
