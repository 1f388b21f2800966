"""Exports: names of files as file systems and readers take them; splits; the ids of COCO files."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from ovseg_batch.errors import UsageError
from ovseg_batch.export.exporting import Options, Plan, export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.parts import Parts
from ovseg_batch.export.pictures import PanopticWriter
from ovseg_batch.export.selection import ChosenImage, Selection, known_split, parted_name
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.marks import MANIFEST
from ovseg_batch.methods.confidence import ImageConfidence
from ovseg_batch.types import ImageRow
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command
from tests.harness.image_variants import annotation
from tests.support.exported import write

SEEN = set("bmp dng jpeg jpg mpo png tif tiff webp heic heif avif jp2".split())  # Ultralytics 8.4's
LONG, WIDE = "M" * 251, "長" * 83 + "ab"
NAMES = (
    "seq1/images/a.jpg",
    "seq2/images/a.jpg",
    "images/images/b.png",
    "images/b.jpg",
    "images_/b.jpg",
    "images.jpg",
    "train/images/labels/c.jpg",
    "test/e.jpg",
    "testfolder/e.jpg",
    "my_val-2/dev1/e.jpg",
    "contest/eval.jpg",
    "anim.gif",
    "anim.png",
    "camera.jfif",
    "old.jpe",
    "deep.pgm",
    "wrong.jpg",
    f"{LONG}.jpg",
    f"{LONG}.png",
    f"{WIDE}.jpg",
    f"{WIDE}.png",
    f"{WIDE}/d.jpg",
)
KINDS = {"gif": "GIF", "png": "PNG", "pgm": "PPM"}


def run(images: Path, workdir: Path, command: Command, *more: str) -> str:
    arguments = ("--labels", "sky, grass", "--set", "manifest.shard_rows=5", "--set", "refine.method=none")
    done = command("run", images, "-o", workdir, *arguments, *more)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def named(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A run over images whose names and kinds readers treat in their own ways; the folder above it."""
    root = tmp_path_factory.mktemp("named")
    scene = np.asarray(Image.open(next((few_scenes / "images").iterdir())).convert("RGB"))
    for number, name in enumerate(NAMES):
        path = root / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "GIF" if name == "wrong.jpg" else KINDS.get(name.rpartition(".")[2], "JPEG")
        part = np.ascontiguousarray(scene[number : number + 96, number : number + 128])
        image = Image.fromarray(part[..., 0].astype(np.uint16) * 257 if name == "deep.pgm" else part)
        image.save(path, kind)
    run(root / "in", root / "run", command)
    return root


def test_ultralytics_finds_every_image_and_its_labels(named: Path, tmp_path: Path) -> None:
    """It lists `images/`, and looks for labels where the last `/images/` of a path is `/labels/`."""
    folder = write(named / "run", "yolo", tmp_path)
    found = [path for path in (folder / "images").rglob("*") if not path.is_dir()]
    assert len(found) == len(NAMES)
    labels = set()
    for path in found:
        assert path.suffix[1:].lower() in SEEN
        with Image.open(path) as image:
            assert str(image.format).lower() in SEEN and image.size == (128, 96)
        label = Path("/labels/".join(str(path).rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt")
        assert label.is_file()
        labels.add(label)
    assert labels == set((folder / "labels").rglob("*.txt"))
    for name in ("anim.gif", "wrong.jpg"):
        stem = name.partition(".")[0]
        [path] = [path for path in found if path.name.startswith(stem) and not path.is_symlink()]
        with Image.open(named / "in" / name) as before, Image.open(path) as after:
            assert np.array_equal(np.asarray(before.convert("RGB")), np.asarray(after.convert("RGB")))
    assert (folder / "images/train/camera.jpg").is_symlink() and (folder / "images/train/old.jpg").is_symlink()
    with Image.open(folder / "images/train/deep.png") as deep:
        wanted = np.asarray(Image.open(named / "in" / "deep.pgm"))
        assert wanted.max() > 255 and np.array_equal(np.asarray(deep), wanted)


@pytest.mark.parametrize("name", ["hf-imagefolder", "panoptic", "semantic", "masks"])
def test_long_names_that_share_a_stem_are_exported(name: str, named: Path, tmp_path: Path) -> None:
    folder = write(named / "run", name, tmp_path)
    made = [p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir() and ".ovseg-export" not in p.parts]
    assert all(len(os.fsencode(part)) <= 255 for path in made for part in path.parts)
    if name == "masks":
        assert len(made) == len(json.loads((named / "run" / "annotations.json").read_text())["annotations"])
    else:
        maps = [
            path
            for path in made
            if path.suffix == ".png" and (name, path.parts[1:2]) != ("hf-imagefolder", ("images",))
        ]
        assert len(maps) == len(NAMES)
    if name == "hf-imagefolder":
        lines = [json.loads(line) for line in (folder / "train/metadata.jsonl").read_text().splitlines()]
        assert all(
            (folder / "train" / line[key]).is_file() for line in lines for key in ("file_name", "mask_file_name")
        )


#: Words of `datasets` 5.0 for splits; a folder that holds one between separators assigns all below it to the split.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
AROUND = "-._ 0-9"
PATTERNS = ("**/{0}/**", "**/{0}[{1}]*/**", "**/*[{1}]{0}/**", "**/*[{1}]{0}[{1}]*/**")


def test_datasets_finds_one_split_whatever_the_folders_are_called(named: Path, tmp_path: Path) -> None:
    """The globs are those by which `load_dataset("imagefolder", data_dir=…)` infers splits."""
    folder = write(named / "run", "hf-imagefolder", tmp_path)
    found = {
        split: {path for word in words for of in PATTERNS for path in files_below(folder, of.format(word, AROUND))}
        for split, words in SPLIT_FOLDERS.items()
    }
    assert len(found["train"]) == 2 * len(NAMES) + 1  # images, masks, metadata.jsonl
    assert not found["validation"] and not found["test"]
    assert (folder / "train/images/my_valfolder-2/devfolder1/e.jpg").exists()
    assert (folder / "train/images/contest/eval.jpg").exists()
    assert len(list((folder / "train/images").glob("testfolder/e-*.jpg"))) == 2  # of test/ and of testfolder/


def files_below(folder: Path, pattern: str) -> list[str]:
    found = LocalFileSystem().glob(f"{folder}/{pattern}", detail=True)
    return [path for path, about in found.items() if about["type"] == "file" or about["islink"]]


def test_an_output_may_be_long_relative_or_a_link(named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    for path in (Path("x" * 250 + ".json"), Path("link/../m.json")):  # relative, and through a link
        export(Workdir(named / "run"), WRITERS["coco"], path, Selection(), Options(), workers=0)
        assert len(json.loads(path.read_text())["images"]) == len(NAMES)
    export(Workdir(named / "run"), WRITERS["yolo"], Path("link"), Selection(), Options(), workers=0, overwrite=True)
    assert sorted(path.name for path in Path("real").iterdir()) == [".ovseg-export", "data.yaml", "images", "labels"]


def test_a_name_without_its_suffix() -> None:
    given = ("a.jpg", "a.b.jpg", "a", "a.", "d.x/a", "d.x/.jpg", "..jpg", "...jpg")
    assert [parted_name(name) for name in given] == [
        ("a", ".jpg"),
        ("a.b", ".jpg"),
        ("a", ""),
        ("a.", ""),
        ("d.x/a", ""),
        ("d.x/.jpg", ""),
        ("..jpg", ""),
        ("...jpg", ""),
    ]


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "split"),
    [(w, "val") for w in ("val", "valid", "Validation", " dev ", "VAL\n")]
    + [(w, "test") for w in ("test", "Testing")]
    + [(w, "train") for w in ("train", "TRAINING", "", None, "  ")]
    + [(w, None) for w in ("eval", "holdout", 0, True, "train/val")],
)
def test_what_splits_are_called(word: object, split: str | None) -> None:
    assert known_split(word) == split


def test_an_unknown_split_is_refused(named: Path, tmp_path: Path, command: Command) -> None:
    listed = tmp_path / "list.csv"
    names = [named / "in" / name for name in NAMES[:3]]
    for words in (("train", "validation", "dev"), ("train", "Valid", "holdout")):
        listed.write_text("path,split\n" + "".join(f"{n},{w}\n" for n, w in zip(names, words, strict=True)))
        run(listed, tmp_path / words[2], command)
    write(tmp_path / "dev", "coco", tmp_path)
    found = {
        split: len(json.loads((tmp_path / f"masks-{split}.json").read_text())["images"])
        for split in ("train", "val", "test")
    }
    assert found == {"train": 1, "val": 2, "test": 0}
    with pytest.raises(
        UsageError, match=r"the split 'holdout' for .*images/b\.png\. A split is one of train, training"
    ):
        write(tmp_path / "holdout", "yolo", tmp_path)
    assert not (tmp_path / "yolo").exists()
    with pytest.raises(UsageError, match=r"There is no split 'dev'\. An export has train, val, test\."):
        write(tmp_path / "dev", "coco", tmp_path, Selection(split="dev"))


# --- ids of images ---------------------------------------------------------------------------------------------------


def coco(path: Path, images: dict[int, str] | dict[object, str]) -> Path:
    """A COCO file of images of the folder `in` beside it."""
    entries = [{"id": number, "file_name": f"in/{name}", "width": 128, "height": 96} for number, name in images.items()]
    path.write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    return path


def ids(path: Path) -> tuple[list[int], set[int]]:
    """The ids of the images in a file, and those that annotations name."""
    content = json.loads(path.read_text())
    return [one["id"] for one in content["images"]], {one["image_id"] for one in content["annotations"]}


def test_coco_in_coco_out(named: Path, tmp_path: Path, command: Command) -> None:
    wanted = {285: NAMES[3], 139: NAMES[4], 2**62: NAMES[5], 0: NAMES[0]}
    given = coco(named / "instances.json", wanted)
    run(given, tmp_path / "run", command)
    for path in (
        tmp_path / "run" / "annotations.json",
        write(tmp_path / "run", "coco", tmp_path),
        write(tmp_path / "run", "coco-polygon", tmp_path / "polygon"),
        write(tmp_path / "run", "panoptic", tmp_path) / "panoptic.json",
    ):
        found, named_ids = ids(path)
        assert found == list(wanted) and named_ids == set(wanted)
    run(tmp_path / "run" / "annotations.json", tmp_path / "again", command)  # which is an input in its turn
    again = json.loads((tmp_path / "again" / "annotations.json").read_text())["images"]
    assert {one["id"]: Path(one["file_name"]).name for one in again} == {k: Path(n).name for k, n in wanted.items()}
    rows = [row for shard in range(1) for row in Manifest.open(tmp_path / "again" / MANIFEST).read_shard(shard)]
    assert [Path(row.path).resolve() for row in rows] == [(named / "in" / name).resolve() for name in wanted.values()]


def test_ids_of_mixed_inputs_count_the_rows(named: Path, tmp_path: Path) -> None:
    one, other = coco(named / "one.json", {7: NAMES[3], 9: NAMES[4]}), coco(named / "other.json", {7: NAMES[5]})
    for inputs in ([one, other], [one, named / "in" / "anim.gif"]):
        summary = build_manifest([str(path) for path in inputs], tmp_path / "m.parquet", 2)
        assert any("not every image has a unique COCO id" in note for note in summary.notes())
        manifest = Manifest.open(tmp_path / "m.parquet")
        assert [manifest.image_id(row) for shard in range(2) for row in manifest.read_shard(shard)] == [1, 2, 3]
    assert build_manifest([str(one)], tmp_path / "m.parquet", 2).notes() == []


@pytest.mark.parametrize("number", [1.5, True, -1, 2**63, 2**70, 1e30, "139", None, [1], float("nan")])
def test_an_id_that_is_no_whole_number_is_refused(number: object, named: Path, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [{"id": number, "file_name": "a.jpg"}]}))
    with pytest.raises(UsageError, match=r"the image a\.jpg has the id .*\. Ids are whole numbers from 0 to"):
        build_manifest([str(path)], tmp_path / "m.parquet", 2)


def test_one_id_for_two_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [{"id": 3, "file_name": "a.jpg"}, {"id": 3.0, "file_name": "b.jpg"}]}))
    with pytest.raises(UsageError, match=re.escape("the images a.jpg and b.jpg have the same id 3.")):
        build_manifest([str(path)], tmp_path / "m.parquet", 2)


# --- panoptic segments -----------------------------------------------------------------------------------------------


def test_areas_of_segments_are_the_pixels_of_the_png(tmp_path: Path) -> None:
    """Where masks overlap the later one is in front; a segment of which nothing is left is none."""
    whole, half, dot = np.ones((6, 8), bool), np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    half[:3], dot[5, 7] = True, True
    masks = [("c0", dot), ("c1", whole), ("c0", half), ("c2", dot), ("c1", dot)]
    drawn = [annotation(name, mask, 0.5) for name, mask in masks]
    sure = ImageConfidence.from_masks([0.5])
    image = ChosenImage(ImageRow(0, "a", "a.png", "a.png"), "a", 6, 8, drawn, sure, "", 1)
    names = ("c0", "c1", "c2")
    for stuff in ((), ("c1",)):
        parts = Parts(tmp_path / str(len(stuff)))
        plan = Plan(
            names, dict(zip(names, (1, 2, 3), strict=True)), False, (), Options(stuff=stuff), tmp_path, parts, {}
        )
        owner, entries = PanopticWriter(plan)._segments(image)
        found = Counter(owner.ravel().tolist())
        assert {one["id"]: one["area"] for one in entries} == {number: n for number, n in found.items() if number}
        for one in entries:
            rows, columns = np.nonzero(owner == one["id"])
            x, y, wide, tall = one["bbox"]
            assert (x, y, x + wide, y + tall) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
