"""Exports: the masks that come back are the masks that went out."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask

from ovseg_batch.export import FORMATS
from ovseg_batch.export.cvat import row_counts
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.label_studio import brush_counts
from ovseg_batch.export.thresholds import keep_share
from ovseg_batch.io import rle
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.polygons import centre_ring, edge_rings
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir
from tests.conftest import LABELS, Command, run_arguments
from tests.support.exported import Array, Masks, read_coco, same, write

NAMES = LABELS.split(", ")


@pytest.fixture(scope="module")
def masks(run_of_six: Path) -> Masks:
    """What the run committed."""
    results = Results.open(Workdir(run_of_six))
    found: Masks = {}
    for shard in range(results.manifest.shards):
        for image in results.shard(shard):
            decoded = [(one.category, rle.decode(one.rle, *image.size)) for one in image.annotations]
            found[image.row.file_name] = decoded
    return found


# --- what comes back -------------------------------------------------------------------------------------------------


def test_every_format_has_a_writer() -> None:
    assert list(FORMATS) == list(WRITERS)


@pytest.mark.parametrize("name", ["coco", "coco-polygon"])
def test_coco_gives_the_masks_back(name: str, run_of_six: Path, masks: Masks, tmp_path: Path) -> None:
    path = write(run_of_six, name, tmp_path)
    assert same(read_coco(path), masks)
    content = json.loads(path.read_text())
    assert {one["iscrowd"] for one in content["annotations"]} == {0}
    assert [one["id"] for one in content["annotations"]] == list(range(1, 1 + sum(map(len, masks.values()))))
    assert all(0 <= one["confidence"] <= 1 and one["source"] in ("sam", "dense") for one in content["annotations"])
    for image in content["images"]:
        sure = [one["confidence"] for one in content["annotations"] if one["image_id"] == image["id"]]
        assert (image["confidence"], image["unsure_masks"]) == (min(sure), sum(one < 0.5 for one in sure))
    assert not list(tmp_path.glob(".*"))  # no parts are left


def test_coco_of_everything_is_what_the_run_wrote(run_of_six: Path, tmp_path: Path) -> None:
    ours = json.loads(write(run_of_six, "coco", tmp_path).read_text())
    run = json.loads((run_of_six / "annotations.json").read_text())
    assert ours["annotations"] == run["annotations"] and ours["categories"] == run["categories"]


def test_panoptic_segments_are_the_masks(run_of_six: Path, masks: Masks, tmp_path: Path) -> None:
    folder = write(run_of_six, "panoptic", tmp_path, stuff=("sky", "grass"))
    content = json.loads((folder / "panoptic.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    assert {one["name"] for one in content["categories"] if not one["isthing"]} == {"sky", "grass"}
    found: Masks = {}
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        assert image["id"] == entry["image_id"]
        pixels = np.asarray(Image.open(folder / "panoptic" / entry["file_name"])).astype(int) @ [1, 256, 65536]
        segments = entry["segments_info"]
        found[image["file_name"]] = [(names[one["category_id"]], pixels == one["id"]) for one in segments]
        assert [one["area"] for one in segments] == [int((pixels == one["id"]).sum()) for one in segments]
        for one in segments:
            rows, columns = np.nonzero(pixels == one["id"])
            x, y, wide, tall = one["bbox"]
            assert (x, y, x + wide, y + tall) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert same(found, masks)


def test_stuff_becomes_one_segment(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    assert command(*run_arguments(few_scenes / "images", tmp_path / "run")).returncode == 0
    counted = []
    for stuff in ((), tuple(NAMES)):
        folder = write(tmp_path / "run", "panoptic", tmp_path / str(len(stuff)), stuff=stuff)
        for entry in json.loads((folder / "panoptic.json").read_text())["annotations"]:
            kinds = [one["category_id"] for one in entry["segments_info"]]
            counted.append((bool(stuff), len(kinds), len(set(kinds))))
    assert any(several != kinds for together, several, kinds in counted if not together)
    assert all(several == kinds for together, several, kinds in counted if together)


def test_semantic_maps_hold_the_labels(run_of_six: Path, masks: Masks, tmp_path: Path) -> None:
    plain = write(run_of_six, "semantic", tmp_path)
    coloured = write(run_of_six, "semantic", tmp_path / "voc", palette="voc")
    assert json.loads((plain / "classes.json").read_text())["classes"] == {str(k): n for k, n in enumerate(NAMES)}
    for name, entries in masks.items():
        picture = Image.open(plain / f"{Path(name).stem}.png")
        classes = np.asarray(picture)
        assert picture.mode == "L"
        wanted = np.full(classes.shape, 255)
        for label, mask in entries:
            wanted[mask] = NAMES.index(label)
        assert np.array_equal(classes, wanted)
        palette = Image.open(coloured / f"{Path(name).stem}.png")
        assert palette.mode == "P" and np.array_equal(np.asarray(palette), classes)
        assert (palette.getpalette() or [])[3:9] == [128, 0, 0, 0, 128, 0]  # VOC's aeroplane and bicycle


def test_unsure_masks_are_ignored(run_of_six: Path, tmp_path: Path, command: Command) -> None:
    done = command("export", run_of_six, "-f", "semantic", "-o", tmp_path / "half", "--ignore-below", "0.9")
    assert done.returncode == 0 and "of all pixels are labelled" in done.stdout and "% kept" in done.stdout
    results = Results.open(Workdir(run_of_six))
    left = kept = 0
    for shard in range(3):
        for image in results.shard(shard):
            classes = np.asarray(Image.open(tmp_path / "half" / f"{Path(image.row.file_name).stem}.png"))
            for one in image.annotations:
                found = set(classes[rle.decode(one.rle, *classes.shape)])
                assert found == ({NAMES.index(one.category)} if one.confidence >= 0.9 else {255})
                left, kept = left + (255 in found), kept + (255 not in found)
    assert left and kept


def test_thresholds_keep_the_same_share_of_every_label(run_of_six: Path, tmp_path: Path) -> None:
    results = Results.open(Workdir(run_of_six))
    thresholds = keep_share(results, 0.6)
    for label, threshold in thresholds.items():
        own = [
            (one.confidence, one.area)
            for shard in range(3)
            for image in results.shard(shard)
            for one in image.annotations
            if one.category == label
        ]
        total = sum(area for _, area in own)
        assert sum(area for sure, area in own if sure >= threshold) >= 0.6 * total
        assert sum(area for sure, area in own if sure >= threshold + 0.001) < 0.6 * total or threshold == 1


def test_yolo_labels_are_what_ultralytics_draws(run_of_six: Path, masks: Masks, tmp_path: Path) -> None:
    """Exact where a mask has one part, with holes or without; a bridge to another part paints a line."""
    folder = write(run_of_six, "yolo", tmp_path)
    described = yaml.safe_load((folder / "data.yaml").read_text())
    assert list(described["names"].values()) == NAMES
    exact = 0
    for name, entries in masks.items():
        lines = (folder / "labels" / "train" / f"{Path(name).stem}.txt").read_text().splitlines()
        assert (folder / "images" / "train" / name).resolve().is_file()
        for line, (label, mask) in zip(lines, entries, strict=True):
            number, *values = line.split()
            assert NAMES[int(number)] == label
            points = np.array(values, float).reshape(-1, 2) * mask.shape[::-1]
            canvas = np.zeros(mask.shape, np.uint8)
            cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
            parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
            assert (canvas[mask] == 1).all()
            if parts == 1:
                assert np.array_equal(canvas.astype(bool), mask)
                exact += 1
    assert exact > 10


def test_label_studio_shows_the_least_certain_first(run_of_six: Path, masks: Masks, tmp_path: Path) -> None:
    folder = write(run_of_six, "label-studio", tmp_path)
    config = ET.parse(folder / "label-config.xml").getroot()
    brush = config.find("BrushLabels")
    assert brush is not None and [one.get("value") for one in brush] == NAMES
    [path] = folder.glob("tasks-*.json")
    tasks = json.loads(path.read_text())
    doubts = [sum(1 - one["score"] for one in task["predictions"][0]["result"]) for task in tasks]
    assert doubts == sorted(doubts, reverse=True) and len(set(doubts)) > 1
    found: Masks = {}
    for task in tasks:
        entries = []
        for one in task["predictions"][0]["result"]:
            assert (one["from_name"], one["to_name"]) == (brush.get("name"), brush.get("toName"))
            shape = (one["original_height"], one["original_width"])
            entries.append((one["value"]["brushlabels"][0], read_brush(bytes(one["value"]["rle"])).reshape(shape)))
        found[task["data"]["key"]] = entries
        assert task["data"]["image"].startswith("/data/local-files/?d=")
    assert same(dict(sorted(found.items())), masks)


def test_label_studio_names_files_that_are_no_utf_8(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "images").mkdir()
    scene = next((few_scenes / "images").iterdir())
    shutil.copy(scene, tmp_path / "images" / os.fsdecode(b"latin-\xe9.png"))
    assert command(*run_arguments(tmp_path / "images", tmp_path / "run")).returncode == 0
    done = command("export", tmp_path / "run", "-f", "label-studio", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "out").glob("tasks-*.json")
    assert json.loads(path.read_text())[0]["data"]["image"].endswith("latin-%E9.png")


def test_xml_and_csv_of_names_with_control_characters_can_be_read(
    few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "images").mkdir()
    scene = next((few_scenes / "images").iterdir())
    names = ("\x01one.png", "\x1b[31mred.png", "\ttab.png", "two\nlines.png", "\x85next.png", "\uffff.png")
    for name in names:
        shutil.copy(scene, tmp_path / "images" / name)
    (tmp_path / "images" / "\x1bbroken.png").write_text("")
    config = {"extends": "demo", "labels": [{"name": f"{word}\x1b[2J", "synonyms": [word]} for word in NAMES]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run, out = tmp_path / "run", tmp_path / "out"
    assert command("run", tmp_path / "images", "-o", run, "-c", tmp_path / "config.yaml").returncode == 3
    for kind, target in (("cvat", out / "cvat.xml"), ("label-studio", out / "studio"), ("csv", out / "masks.csv")):
        done = command("export", run, "-f", kind, "-o", target)
        assert done.returncode == 0, done.stderr
    found = {image.get("name") for image in ET.parse(out / "cvat.xml").getroot().iter("image")}
    assert found == {name.encode("unicode_escape").decode() for name in names}
    brush = ET.parse(out / "studio" / "label-config.xml").getroot().find("BrushLabels")
    assert brush is not None and {one.get("value") for one in brush} == {f"{word}\\x1b[2J" for word in NAMES}
    for file in (out / "masks.csv", run / "failures.csv"):
        assert not re.search("[\x00-\x09\x0b-\x1f]", file.read_text())


def read_brush(content: bytes) -> Array:
    """The pixels of Label Studio's brush format, read as its documentation says; one of the four equal channels."""
    bits = "".join(f"{byte:08b}" for byte in content)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        is_run, length = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * length if is_run else [take(word) for _ in range(length)]
    pixels = np.array(values).reshape(-1, 4)
    assert (pixels == pixels[:, :1]).all()
    drawn: Array = pixels[:, 3] == 255
    return drawn


@pytest.mark.parametrize("value", [False, True])
def test_long_runs_of_the_brush_format(value: bool) -> None:
    mask = np.full((200, 300), value)  # 240,000 values: four runs of at most 65,536
    mask[100, 7] = not value
    brush = brush_counts(PlacedMask.crop(mask), mask.shape)
    assert np.array_equal(read_brush(brush).reshape(mask.shape), mask)


def test_cvat_keeps_run_lengths_in_their_box(run_of_six: Path, masks: Masks, tmp_path: Path) -> None:
    root = ET.parse(write(run_of_six, "cvat", tmp_path)).getroot()
    assert [one.findtext("name") for one in root.iter("label")] == NAMES
    found: Masks = {}
    for image in root.iter("image"):
        size = (int(image.attrib["height"]), int(image.attrib["width"]))
        found[image.attrib["name"]] = []
        for one in image.iter("mask"):
            x, y, wide, tall = (int(one.attrib[side]) for side in ("left", "top", "width", "height"))
            runs = [int(count) for count in one.attrib["rle"].split(",")]
            inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(tall, wide)
            mask = np.zeros(size, bool)
            mask[y : y + tall, x : x + wide] = inside
            found[image.attrib["name"]].append((one.attrib["label"], mask))
    assert same(found, masks)
    assert row_counts(np.array([[True, True, False]])) == "0, 2, 1"


def test_hugging_face_parquet_holds_everything(
    run_of_six: Path, masks: Masks, few_scenes: Path, tmp_path: Path
) -> None:
    folder = write(run_of_six, "hf", tmp_path)
    paths = sorted((folder / "data").glob("train-*.parquet"))
    assert len(paths) == 3
    found: Masks = {}
    for path in paths:
        table = pq.read_table(path)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert features["image"] == features["mask"] == {"_type": "Image"}
        assert features["objects"][0]["category"]["names"] == NAMES
        for row in table.to_pylist():
            assert row["image"]["bytes"] == (few_scenes / "images" / row["file_name"]).read_bytes()
            size = [row["height"], row["width"]]
            found[row["file_name"]] = [
                (NAMES[one["category"]], coco_mask.decode({"size": size, "counts": one["counts"]}).astype(bool))
                for one in row["objects"]
            ]
    assert same(found, masks)


def test_an_imagefolder_names_images_and_masks(run_of_six: Path, masks: Masks, tmp_path: Path) -> None:
    folder = write(run_of_six, "hf-imagefolder", tmp_path) / "train"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == list(masks)
    for line in lines:
        assert (folder / line["file_name"]).is_symlink()
        classes = np.asarray(Image.open(folder / line["mask_file_name"]))
        assert all((classes[mask] == NAMES.index(label)).all() for label, mask in masks[line["key"]])


def test_masks_one_by_one(run_of_six: Path, masks: Masks, tmp_path: Path) -> None:
    folder = write(run_of_six, "masks", tmp_path)
    for name, entries in masks.items():
        files = sorted((folder / Path(name).stem).iterdir())
        assert [path.stem.split("-", 1)[1] for path in files] == [label for label, _ in entries]
        assert all(
            np.array_equal(np.asarray(Image.open(path)), mask * np.uint8(255))
            for path, (_, mask) in zip(files, entries, strict=True)
        )


def test_a_line_for_every_mask(run_of_six: Path, masks: Masks, tmp_path: Path) -> None:
    with write(run_of_six, "csv", tmp_path).open(newline="") as file:
        lines = list(csv.DictReader(file))
    found: Masks = {name: [] for name in masks}
    for line in lines:
        found[line["file_name"]].append(
            (line["label"], rle.decode(line["rle"], int(line["height"]), int(line["width"])))
        )
        assert int(line["area"]) == found[line["file_name"]][-1][1].sum()
    assert same(found, masks)


# --- outlines --------------------------------------------------------------------------------------------------------

SMALL_MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(SMALL_MASKS)
def test_edges_of_pixels_give_the_mask_back(mask: Array) -> None:
    """Whatever touches at corners, lies in holes, or fills the frame."""
    rings = edge_rings(PlacedMask.crop(mask))
    if not mask.any():
        assert rings == []
        return
    flat = [ring.ravel().tolist() for ring in rings]
    back = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *mask.shape)))
    assert np.array_equal(back.astype(bool), mask)


@given(SMALL_MASKS)
def test_centres_of_pixels_lose_nothing(mask: Array) -> None:
    canvas = np.zeros(mask.shape, np.uint8)
    if mask.any():
        cv2.fillPoly(canvas, [centre_ring(PlacedMask.crop(mask)).astype(np.int32)], 1)
    assert (canvas[mask] == 1).all()


def test_tolerance_takes_corners_away() -> None:
    y, x = np.mgrid[:200, :200]
    disc = (y - 100) ** 2 + (x - 100) ** 2 < 80**2
    [exact], [simple] = (edge_rings(PlacedMask.crop(disc), tolerance) for tolerance in (0, 1.5))
    assert len(simple) < len(exact) / 8
    back = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([simple.ravel().tolist()], 200, 200))).astype(bool)
    assert (back & disc).sum() / (back | disc).sum() > 0.97
