"""Exports and reports made again: nothing is left of what is gone, and nothing of anybody else is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ovseg_batch.errors import UsageError
from ovseg_batch.export import FORMATS
from ovseg_batch.export.exporting import Options, export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.parts import remove_listed
from ovseg_batch.export.selection import Selection
from ovseg_batch.io.atomic import temporary_path
from ovseg_batch.io.bank_file import FORMAT
from ovseg_batch.io.marks import check_replaceable, has_mark
from ovseg_batch.report.build import build_report
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command
from tests.support.exported import FILES, tree, write

NAMES = ("a.png", "b.png", "sub/c.png", "d.png", "e.png")
SPLITS = ("train", "val", "test", "train", "val")
ARGUMENTS = ("--labels", "sky; grass; tree", "--set", "manifest.shard_rows=2", "--set", "refine.method=none")
EDIT = ("--edit", "cutout", "--keep", "sky, grass")


class Listed:
    """A list of images with their splits, and the run over it."""

    def __init__(self, root: Path, scenes: list[Path], command: Command) -> None:
        self.root, self.scenes, self._command = root, scenes, command
        self.split_of: dict[str, str] = {}

    def picture(self, name: str, scene: int) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(self.scenes[scene]) as image:
            image.convert("RGB").crop((0, 0, 160, 120)).save(path)

    def run(self, *more: str) -> Path:
        listed = self.root / "list.csv"
        listed.write_text("path,split\n" + "".join(f"{name},{split}\n" for name, split in self.split_of.items()))
        done = self._command("run", listed, "-o", self.root / "run", *ARGUMENTS, *EDIT, *more)
        assert done.returncode == 0, done.stderr
        return self.root / "run"

    def change(self) -> Path:
        """Another picture, another split, one image fewer, and two more, one of which shares a stem."""
        self.picture("b.png", 5)
        self.split_of["a.png"] = "val"
        del self.split_of["sub/c.png"]
        for name in ("d.jpg", "f.png"):
            self.picture(name, 4)
            self.split_of[name] = "train"
        return self.run("--update")


@pytest.fixture
def listed(few_scenes: Path, tmp_path: Path, command: Command) -> Listed:
    made = Listed(tmp_path / "in", sorted((few_scenes / "images").iterdir()), command)
    for number, name in enumerate(NAMES):
        made.picture(name, number)
    made.split_of = dict(zip(NAMES, SPLITS, strict=True))
    made.run()
    return made


def test_an_export_after_an_update_is_a_fresh_one(listed: Listed, tmp_path: Path) -> None:
    """Whatever the format; what a person has put beside it stays."""
    run, old, fresh = listed.root / "run", tmp_path / "old", tmp_path / "fresh"
    for name in FORMATS:
        write(run, name, old, images="copy")
    notes = [old / "yolo/images/train/notes.txt", old / "masks/mine.png", old / "hf/data/mine.parquet"]
    for note in notes:
        note.write_text("mine")
    listed.change()
    for name in FORMATS:
        path, wanted = (write(run, name, folder, images="copy") for folder in (old, fresh))
        found = {key: content for key, content in tree(path).items() if content != b"mine"}
        assert found == tree(wanted), name
    assert [note.read_text() for note in notes] == ["mine"] * 3
    for name in ("yolo", "masks"):
        folders = [{p.relative_to(f) for p in f.rglob("*") if p.is_dir()} for f in (old / name, fresh / name)]
        assert folders[0] == folders[1]


def test_overwrite_leaves_what_a_person_has_put_there(listed: Listed, tmp_path: Path) -> None:
    run = Workdir(listed.root / "run")
    write(run.root, "yolo", tmp_path)
    (tmp_path / "yolo/labels/mine.txt").write_text("mine")
    export(run, WRITERS["yolo"], tmp_path / "yolo", Selection(split="val"), Options(), workers=0, overwrite=True)
    found = {p.relative_to(tmp_path / "yolo").as_posix() for p in (tmp_path / "yolo").rglob("*") if not p.is_dir()}
    kept = {name for name in found if not name.startswith(".")}
    made = {f"{kind}/train/{stem}.{end}" for stem in "be" for kind, end in (("images", "png"), ("labels", "txt"))}
    assert kept == {"data.yaml", "labels/mine.txt", *made}
    record = tmp_path / "yolo/.ovseg-export/export.json"
    record.write_text(json.dumps({"fingerprint": "of an earlier version"}))
    with pytest.raises(UsageError, match="of another version of ovseg-batch, which did not list its files"):
        export(run, WRITERS["yolo"], tmp_path / "yolo", Selection(), Options(), workers=0, overwrite=True)
    assert (tmp_path / "yolo/labels/mine.txt").exists() and (tmp_path / "yolo/data.yaml").exists()


def test_a_list_reaches_nothing_outside_its_export(tmp_path: Path) -> None:
    root, other = tmp_path / "export", tmp_path / "other"
    for folder in (root / "own", other):
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
    (root / "link").symlink_to(other)
    names = ["../other/file", str(other / "file"), "link/file", "", ".", "..", "own", "link", "gone/file", "own/file"]
    listing = root / "0.files"
    listing.write_text("".join(f"{json.dumps(name)}\n" for name in names) + '"torn')
    remove_listed(root, [listing])
    assert (other / "file").exists() and (root / "link").is_symlink()
    assert not (root / "own").exists() and not listing.exists()


def test_a_report_after_an_update_shows_what_is_there_now(listed: Listed, tmp_path: Path) -> None:
    run = Workdir(listed.root / "run")

    def pictures(name: str) -> dict[str, bytes]:
        build_report(run, tmp_path / name, workers=0)
        return {key: content for key, content in tree(tmp_path / name).items() if key.endswith(".webp")}

    def of(kind: str, row: int, among: dict[str, bytes]) -> list[str]:
        return [key for key in among if key.startswith(f"{kind}/00000/{row:08d}-")]

    before = pictures("old")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "old").rglob("*.webp")}
    assert pictures("old") == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # none was made again
    listed.change()
    after = pictures("old")
    assert after == pictures("fresh")
    for kind in ("images", "masks", "edited"):
        # A changed picture has another name, so that a browser cannot take it from its cache.
        [old], [new] = of(kind, 1, before), of(kind, 1, after)
        assert old != new and before[old] != after[new]
        assert of(kind, 2, before) and not of(kind, 2, after)


def test_the_next_command_removes_what_a_killed_one_has_left(listed: Listed, tmp_path: Path) -> None:
    run = Workdir(listed.root / "run")
    script = "import sys; from pathlib import Path; from ovseg_batch.io.atomic import temporary_path\n"
    script += "for name in sys.argv[1:]: temporary_path(Path(name)).write_text('')"
    targets = {name: tmp_path / FILES.get(name, name) for name in ("hf", "yolo", "coco", "csv")}
    report, bank = tmp_path / "report", tmp_path / "bank.parquet"
    for name in targets:
        write(run.root, name, tmp_path)
    build_report(run, report, workers=0)
    left = [targets["hf"] / ".ovseg-export/image", targets["yolo"] / ".ovseg-export/1", bank]
    left += [*(tmp_path / f"masks-val{path.suffix}" for path in (targets["coco"], targets["csv"]))]
    left += [report / "data/1.webp", report / "index.html", report / "assets/report.css"]
    subprocess.run([sys.executable, "-c", script, *left], check=True)
    others = tmp_path / ".bank.parquet.notes.tmp"
    others.write_text("mine")
    living = temporary_path(bank)
    living.write_text("")
    assert len(list(tmp_path.rglob(".*.tmp"))) == len(left) + 2
    listed.change()
    for name in targets:
        write(run.root, name, tmp_path)
    build_report(run, report, workers=0)
    check_replaceable(bank, lambda file: has_mark(file, FORMAT))
    assert set(tmp_path.rglob(".*.tmp")) == {others, living}
