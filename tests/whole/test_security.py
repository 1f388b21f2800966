"""What a manifest, a name or a label from a stranger can reach: only its own row."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from ovseg_batch.io.atomic import FileBatch
from tests.conftest import Command


def everything(root: Path) -> dict[str, bytes | None]:
    return {p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def test_nothing_is_written_outside_of_the_workdir(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    """Keys and names that climb, absolute ones, and links that lead away."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim.txt").write_text("mine")
    [first, second, third, *_] = sorted((few_scenes / "images").iterdir())
    inner = tmp_path / "job" / "deep"
    inner.mkdir(parents=True)
    shutil.copyfile(first, tmp_path / "job" / "up.png")
    shutil.copyfile(second, outside / "abs.jpg")
    (inner / "link.png").symlink_to(third)
    lines = [
        ("../up.png", "../../outside/victim.txt"),
        (str(outside / "abs.jpg"), "/etc/ovseg-batch-was-here"),
        ("link.png", "a\0b\n=cmd|' /C calc'!A0"),
    ]
    with (inner / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "key"), *lines])
    before = everything(tmp_path)
    done = command("run", inner / "list.csv", "-o", tmp_path / "run", "--labels", "sky; grass", "--edit", "cutout")
    assert done.returncode == 0, done.stderr
    after = {name: content for name, content in everything(tmp_path).items() if not name.startswith("run")}
    assert after == before
    assert not Path("/etc/ovseg-batch-was-here").exists()
    top = {path.name for path in (tmp_path / "run").iterdir()}
    assert top == {"annotations.json", "edited", "failures.csv", "config.yaml", "manifest.parquet", "stages"}
    assert len([path for path in (tmp_path / "run" / "edited").rglob("*") if path.is_file()]) == 3
    names = [image["file_name"] for image in json.loads((tmp_path / "run" / "annotations.json").read_text())["images"]]
    assert not any(name.startswith("/") or ".." in Path(name).parts for name in names), names


@pytest.mark.parametrize("name", ["../up.png", "/etc/up.png", "a/../../up.png", "a//b.png", "", ".", "a/", "a\0b.png"])
def test_a_forged_manifest_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    """Our own manifests hold no such names; a foreign file may claim to be one."""
    with FileBatch(tmp_path / "stage" / "files", tmp_path / "stage" / "parts") as files:
        assert not files.accepts(name)
        assert files.accepts("a/b.png")


def test_names_and_labels_stay_text(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    images = tmp_path / "images"
    images.mkdir()
    evil = [
        "=HYPERLINK(0).jpg",
        "<script>alert(1)</script>.jpg".replace("/", "_"),
        'quote".jpg',
        "two\nlines.jpg",
        "@SUM.jpg",
    ]
    for name in evil:
        (images / name).write_bytes(b"no image")
    shutil.copyfile(next((few_scenes / "images").glob("*.png")), images / "good.png")
    labels = '=cmd|"<b>": sky; @"x": grass'
    done = command("run", images, "-o", tmp_path / "run", "--labels", labels)
    assert done.returncode == 3, done.stderr
    with (tmp_path / "run" / "failures.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) == 1 + len(evil)
    assert all(field[:1] not in ("=", "+", "-", "@") and "\n" not in field for line in lines for field in line)
    coco = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert {category["name"] for category in coco["categories"]} == {'=cmd|"<b>"', '@"x"'}
