"""Exports: filters and splits; stopped and gone on; half-finished runs; what is in the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.export import FORMATS
from ovseg_batch.export.exporting import Exported, Options, Plan, export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.image_files import local_path
from ovseg_batch.export.parts import Parts, ShardFiles
from ovseg_batch.export.pictures import class_map
from ovseg_batch.export.selection import ChosenImage, Selection
from ovseg_batch.export.yolo import READER
from ovseg_batch.methods.confidence import ImageConfidence
from ovseg_batch.types import ImageRow
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command, run_arguments
from tests.harness.image_variants import annotation
from tests.harness.job import Running
from tests.support.exported import FILES, Array, read_coco, tree, write

# --- what is chosen --------------------------------------------------------------------------------------------------


def test_filters_by_score_area_and_label(run_of_six: Path, tmp_path: Path) -> None:
    every = json.loads(write(run_of_six, "coco", tmp_path / "all").read_text())
    wanted = Selection(labels=("sky", "tree"), min_score=0.5, min_area=300)
    few = json.loads(write(run_of_six, "coco", tmp_path / "few", wanted).read_text())
    ids = {one["name"]: one["id"] for one in every["categories"] if one["name"] in ("sky", "tree")}
    kept = [
        one["segmentation"]
        for one in every["annotations"]
        if one["category_id"] in ids.values() and one["confidence"] >= 0.5 and one["area"] >= 300
    ]
    assert 0 < len(kept) < len(every["annotations"])
    assert [one["segmentation"] for one in few["annotations"]] == kept
    assert {one["name"]: one["id"] for one in few["categories"]} == ids
    assert few["images"] == every["images"]  # an image without masks is one all the same


def test_splits_depend_on_the_key_alone(run_of_six: Path, tmp_path: Path) -> None:
    write(run_of_six, "coco", tmp_path, Selection(val_share=0.5))
    parts = {split: read_coco(tmp_path / f"masks-{split}.json") for split in ("train", "val")}
    whole = read_coco(write(run_of_six, "coco", tmp_path / "whole"))
    assert parts["train"].keys() | parts["val"].keys() == whole.keys()
    assert not parts["train"].keys() & parts["val"].keys() and parts["val"]
    one = read_coco(write(run_of_six, "coco-polygon", tmp_path / "val", Selection(val_share=0.5, split="val")))
    assert one.keys() == parts["val"].keys()
    more = Selection(val_share=0.9)
    write(run_of_six, "coco", tmp_path / "more", more)
    assert read_coco(tmp_path / "more" / "masks-val.json").keys() >= parts["val"].keys()


def test_a_list_may_contain_the_split(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    names = sorted(path.name for path in (few_scenes / "images").iterdir())
    split_of = dict(zip(names, ["train", "val", "test", "train", "val", "test"], strict=True))
    listed = tmp_path / "list.csv"
    listed.write_text("path,split\n" + "".join(f"{few_scenes / 'images' / n},{s}\n" for n, s in split_of.items()))
    assert command(*run_arguments(listed, tmp_path / "run")).returncode == 0
    folder = write(tmp_path / "run", "yolo", tmp_path)
    for split in ("train", "val", "test"):
        stems = {Path(name).stem for name, own in split_of.items() if own == split}
        assert {path.stem for path in (folder / "labels" / split).rglob("*.txt")} == stems
    assert yaml.safe_load((folder / "data.yaml").read_text())["test"] == "images/test"


def test_two_images_of_one_stem_stay_two(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    first, second = sorted((few_scenes / "images").glob("*.png"))[:2]
    images = tmp_path / "images"
    images.mkdir()
    Image.open(first).save(images / "a.png")
    Image.open(second).convert("RGB").save(images / "a.jpg")
    shutil.copy(first, images / "b.png")
    assert command(*run_arguments(images, tmp_path / "run")).returncode == 0
    folder = write(tmp_path / "run", "semantic", tmp_path)
    names = sorted(path.stem for path in folder.glob("*.png"))
    assert len(names) == 3 and names[2] == "b" and names[0].startswith("a-") and names[1].startswith("a-")


def chosen(*annotations: tuple[str, float, Array]) -> ChosenImage:
    height, width = annotations[0][2].shape
    masks = [annotation(name, mask, sure) for name, sure, mask in annotations]
    confidence = ImageConfidence.from_masks(sure for _, sure, _ in annotations)
    return ChosenImage(ImageRow(0, "a", "a.png", "a.png"), "a", height, width, masks, confidence, "")


def plan(labels: int, background: bool, path: Path, **options: Any) -> Plan:
    names = tuple(f"c{k}" for k in range(labels))
    ids = {name: k + 1 for k, name in enumerate(names)}
    return Plan(names, ids, background, (), Options(**options), path, Parts(path), {})


def test_many_classes_take_16_bits(tmp_path: Path) -> None:
    half = np.zeros((4, 4), bool)
    half[:2] = True
    image = chosen(("c253", 1.0, half), ("c1", 0.2, ~half))
    few, many = class_map(image, plan(254, False, tmp_path)), class_map(image, plan(255, False, tmp_path))
    assert (few.dtype, many.dtype) == (np.dtype(np.uint8), np.dtype(np.uint16))
    assert few[0, 0] == many[0, 0] == 253 and few[3, 3] == many[3, 3] == 1
    unsure = class_map(image, plan(255, True, tmp_path, thresholds={"c1": 0.5}))
    assert unsure[0, 0] == 254 and unsure[3, 3] == 65535
    empty = chosen(("c0", 1.0, half))
    assert (
        class_map(empty, plan(3, True, tmp_path))[3, 3] == 0 and class_map(empty, plan(3, False, tmp_path))[3, 3] == 255
    )


# --- stopped, half-finished, in the way ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FORMATS))
def test_killed_and_given_again_gives_the_same(
    name: str, run_of_six: Path, tmp_path: Path, start: Callable[..., Running], command: Command
) -> None:
    whole = write(run_of_six, name, tmp_path / "whole")
    path = tmp_path / "killed" / FILES.get(name, name)
    arguments = ("export", run_of_six, "-f", name, "-o", path, "--workers", "0")
    assert start(*arguments, OVSEG_FAILPOINTS="marked:2").wait().code == -9
    assert not path.is_file()
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert tree(path) == tree(whole)
    assert command(*arguments).returncode == 0 and tree(path) == tree(whole)  # and again, with nothing to do


def test_shards_that_are_there_are_not_written_again(run_of_six: Path, tmp_path: Path, start: Any) -> None:
    arguments = ("export", run_of_six, "-f", "semantic", "-o", tmp_path / "maps", "--workers", "0")
    assert start(*arguments, OVSEG_FAILPOINTS="marked:2").wait().code == -9
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "maps").glob("*.png")}
    assert len(before) == 4
    assert start(*arguments).wait().code == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "maps").glob("*.png")}
    assert len(after) == 6 and before.items() <= after.items()


def test_more_processes_write_the_same(run_of_six: Path, tmp_path: Path) -> None:
    for name in ("coco", "semantic"):
        alone = write(run_of_six, name, tmp_path / "alone")
        path = tmp_path / "together" / FILES.get(name, name)
        export(Workdir(run_of_six), WRITERS[name], path, Selection(), Options(), workers=2)
        assert tree(path) == tree(alone)


def test_a_half_finished_run_is_exported_and_later_the_rest(run_of_six: Path, tmp_path: Path, command: Command) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(run_of_six, workdir)
    results = Results.open(Workdir(workdir))
    commit = results.masks.commit_path(1)
    content = commit.read_bytes()
    commit.unlink()
    for name in ("coco", "panoptic"):
        path = tmp_path / FILES.get(name, name)
        done = command("export", workdir, "-f", name, "-o", path)
        assert (
            done.returncode == 0
            and "4 images" in done.stdout
            and "1 of 3 shards are missing in the export" in done.stderr
        )
        assert "never found" not in done.stdout
        commit.write_bytes(content)
        done = command("export", workdir, "-f", name, "-o", path)
        assert done.returncode == 0 and "6 images" in done.stdout and done.stderr.strip() == ""
        assert tree(path) == tree(write(run_of_six, name, tmp_path / "whole"))
        commit.unlink()
    commit.write_bytes(content)


def test_labels_that_are_in_no_image_are_named(run_of_six: Path, tmp_path: Path, command: Command) -> None:
    results = Results.open(Workdir(run_of_six))
    found = {one.category for shard in range(3) for image in results.shard(shard) for one in image.annotations}
    absent = [label for label in results.labels if label not in found]
    assert absent and "sky" in found
    arguments = ("export", run_of_six, "-f", "csv", "-o")
    line = f"in the run, never found: {', '.join(absent)}\n"
    assert line in command(*arguments, tmp_path / "all.csv").stdout
    some = command(*arguments, tmp_path / "some.csv", "--labels", f"sky, {absent[0]}").stdout
    assert f"never found: {absent[0]}\n" in some
    assert "never found" not in command(*arguments, tmp_path / "sky.csv", "--labels", "sky").stdout


def exported(workdir: Path, path: Path, name: str = "semantic", overwrite: bool = False, **options: Any) -> Exported:
    return export(
        Workdir(workdir), WRITERS[name], path, Selection(), Options(**options), workers=0, overwrite=overwrite
    )


def test_nothing_of_others_is_overwritten(run_of_six: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no export"):
        exported(run_of_six, tmp_path)
    exported(run_of_six, tmp_path / "maps")
    with pytest.raises(UsageError, match="other settings"):
        exported(run_of_six, tmp_path / "maps", palette="voc")
    with pytest.raises(UsageError, match="is a folder"):
        exported(run_of_six, tmp_path / "maps", "coco")


def test_the_outputs_of_a_run_are_never_replaced(run_of_six: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(run_of_six, tmp_path / "other")
    for path in (tmp_path / "other" / "annotations.json", run_of_six / "annotations.json"):
        before = path.read_bytes()
        for more in ((), ("--overwrite",)):
            done = command("export", run_of_six, "-f", "coco", "-o", path, "--min-score", "0.9", *more)
            assert done.returncode == 2 and f"{path} belongs to the workdir {path.parent}" in done.stderr
        assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["coco", "coco-polygon", "cvat", "csv"])
def test_a_file_that_is_no_export_is_kept(name: str, run_of_six: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / FILES[name]
    arguments = ("export", run_of_six, "-f", name, "-o", path)
    path.write_text("mine")
    done = command(*arguments)
    assert done.returncode == 2 and f"{path} exists and is not an earlier export as {name}." in done.stderr
    assert path.read_text() == "mine" and [path] == list(tmp_path.iterdir())
    assert command(*arguments, "--overwrite").returncode == 0
    first = path.read_bytes()
    assert first != b"mine"
    again = command(*arguments, "--labels", "sky")
    assert again.returncode == 0, again.stderr
    assert path.read_bytes() != first


def test_every_file_of_a_split_is_checked(run_of_six: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "masks-val.csv").write_text("mine")
    done = command("export", run_of_six, "-f", "csv", "-o", tmp_path / "masks.csv", "--val", "0.5")
    assert done.returncode == 2 and "masks-val.csv exists" in done.stderr
    assert (tmp_path / "masks-val.csv").read_text() == "mine"


def test_overwrite_replaces_an_export_and_nothing_else(run_of_six: Path, tmp_path: Path) -> None:
    exported(run_of_six, tmp_path / "maps")
    exported(run_of_six, tmp_path / "maps", overwrite=True, palette="voc")
    assert tree(tmp_path / "maps") == tree(write(run_of_six, "semantic", tmp_path / "other", palette="voc"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no export"):
        exported(run_of_six, tmp_path / "mine", overwrite=True)
    for own in ("annotations.json", "edited/masks.json"):
        with pytest.raises(UsageError, match="belongs to the workdir"):
            exported(run_of_six, run_of_six / own, "coco", overwrite=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels", "skyy"), "Did you mean 'sky'"),
        (("--split", "val"), "no column `split`"),
        (("--stuff", "gras"), "Did you mean 'grass'"),
        (("--thresholds", "nowhere.json"), "not a file of thresholds"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: tuple[str, str], message: str, run_of_six: Path, tmp_path: Path, command: Command
) -> None:
    done = command("export", run_of_six, "-f", "semantic", "-o", tmp_path / "maps", *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "maps").exists()


def test_images_that_are_not_here(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--images none"):
        local_path(ImageRow(0, "a", "a.png", "s3://bucket/a.png"))
    with pytest.raises(OvsegError, match="not there any more"):
        local_path(ImageRow(0, "a", "a.png", str(tmp_path / "gone.png")))
    (tmp_path / "torn.png").write_bytes(b"no image")
    with pytest.raises(OvsegError, match="cannot be read any more"):
        READER.choice(tmp_path / "torn.png", ".png")
    files = ShardFiles(tmp_path / "out", Parts(tmp_path / "out" / "kept"), 0)
    assert files.place(ImageRow(0, "a", "a.png", "s3://bucket/a.png"), "a", ".png", READER, "none") == ".png"
    assert not (tmp_path / "out" / "a.png").exists()
