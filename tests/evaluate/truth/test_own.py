"""`eval --truth`: a truth of one's own gives the figures of a data set, and a wrong one a sentence."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ovseg_batch
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.truth.matching import match_images, match_labels
from ovseg_batch.io import rle
from tests.conftest import LABELS, Command
from tests.support import own_truth

Tree = dict[str, Any]
OWN = {"dataset", "truth", "without truth"}  # keys of the JSON that depend on the kind of truth


@pytest.fixture(scope="module")
def finished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the undisturbed run, which keeps the scores of this module."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("scored") / "run")


def figures(command: Command, run: Path, *truth: object) -> Tree:
    done = command("eval", run, *truth, "--json")
    assert done.returncode == 0, done.stderr
    found: Tree = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def of_scenes(finished: Path, few_scenes: Path, command: Command) -> Tree:
    return figures(command, finished, "--dataset", "scenes", "--root", few_scenes)


def common(found: Tree, expected: Tree) -> None:
    """Every figure that both have is equal."""
    for name in found.keys() & expected.keys() - OWN:
        assert (
            found[name] == pytest.approx(expected[name], rel=1e-12, nan_ok=True)
            if isinstance(found[name], float)
            else found[name] == expected[name]
        ), name


@pytest.mark.parametrize("kind", ["coco", "panoptic"])
def test_a_truth_with_objects_gives_every_figure_of_the_data_set(
    kind: str, finished: Path, few_scenes: Path, of_scenes: Tree, tmp_path: Path, command: Command
) -> None:
    found = figures(command, finished, "--truth", getattr(own_truth, kind)(few_scenes, tmp_path / "truth.json"))
    assert found.keys() - OWN == of_scenes.keys() - OWN and found["PQ"] > 0.3 and found["images"] == 6
    common(found, of_scenes)


@pytest.mark.parametrize("palette", [False, True])
def test_class_maps_give_the_figures_of_the_data_set(
    palette: bool, finished: Path, few_scenes: Path, of_scenes: Tree, tmp_path: Path, command: Command
) -> None:
    found = figures(command, finished, "--truth", own_truth.class_maps(few_scenes, tmp_path / "maps", palette))
    assert {"mIoU", "boundary F1", "pixel accuracy", "mean accuracy"} <= found.keys() and "mask AP" not in found
    for name in ("mIoU", "boundary F1", "pixel accuracy", "mean accuracy", "images"):
        assert found[name] == of_scenes[name] and found["intervals"].get(name) == of_scenes["intervals"].get(name)
    for name, values in found["classes"].items():
        assert all(value == of_scenes["classes"][name][kind] for kind, value in values.items())


def test_intervals_hold_the_figures_and_are_the_same_again(
    finished: Path, few_scenes: Path, of_scenes: Tree, command: Command
) -> None:
    again = figures(command, finished, "--dataset", "scenes", "--root", few_scenes)
    assert again["intervals"] == of_scenes["intervals"]
    assert set(of_scenes["intervals"]) == {n for n, v in of_scenes.items() if isinstance(v, float)} - {
        "errors in tenth"
    }
    for name, (low, high) in of_scenes["intervals"].items():
        assert low <= high and low - 0.05 <= of_scenes[name] <= high + 0.05, name
    done = command("eval", finished, "--dataset", "scenes", "--root", few_scenes)
    assert "95 % interval" in done.stdout


@pytest.mark.parametrize("kind", ["coco", "coco-polygon", "semantic", "panoptic"])
def test_an_export_is_a_truth_that_the_run_meets(kind: str, run_of_six: Path, tmp_path: Path, command: Command) -> None:
    run_of_six = shutil.copytree(run_of_six, tmp_path / "run")
    file = tmp_path / ("masks.json" if kind.startswith("coco") else "masks")
    assert command("export", run_of_six, "-f", kind, "-o", file).returncode == 0
    found = figures(command, run_of_six, "--truth", file)
    assert found["images"] == 6 and found["mIoU"] == 1, found
    if kind != "semantic":
        assert found["mask AP"] > 0.99 and found["PQ"] == pytest.approx(1)


def test_images_without_a_truth_are_left_out_and_counted(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    folder = own_truth.class_maps(few_scenes, tmp_path / "maps")
    for path in sorted(folder.glob("*.png"))[:4]:
        path.unlink()
    found = figures(command, finished, "--truth", folder)
    assert found["images"] == 2 and found["without truth"] == 4


def test_a_corrected_truth_is_scored_again_and_others_are_kept(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    folder = own_truth.class_maps(few_scenes, tmp_path / "maps")
    earlier = {*run.glob("stages/*/eval/truth-*/*.npz")}
    before = figures(command, run, "--truth", folder)
    kept = {path: path.stat().st_mtime_ns for path in {*run.glob("stages/*/eval/truth-*/*.npz")} - earlier}
    assert len(kept) == 3
    first = min(folder.glob("*.png"))
    pixels = np.array(Image.open(first))
    Image.fromarray(np.where(pixels == pixels[0, 0], 3, pixels).astype(np.uint8)).save(first)
    assert figures(command, run, "--truth", folder)["mIoU"] != before["mIoU"]
    assert sum(path.stat().st_mtime_ns != time for path, time in kept.items()) == 1


def test_pixels_without_an_annotation_are_wrong_for_a_label_and_no_class(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    """Of a truth with balls alone, other labels do not count, and a ball outside of the annotations is wrong."""

    def balls(tree: Tree) -> None:
        chosen = next(one["id"] for one in tree["categories"] if one["name"] == "ball")
        tree["categories"] = [one for one in tree["categories"] if one["id"] == chosen]
        tree["annotations"] = [one for one in tree["annotations"] if one["category_id"] == chosen]

    truth = own_truth.coco(few_scenes, tmp_path / "t.json", balls)
    done = command("eval", finished, "--truth", truth, "--json")
    found = json.loads(done.stdout)
    assert list(found["classes"]) == ["ball"] and "19 labels that are no category of the truth" in done.stderr
    masks = json.loads((finished / "annotations.json").read_text())
    names = {one["id"]: one["name"] for one in masks["categories"]}
    files = {one["id"]: one["file_name"] for one in masks["images"]}
    drawn = {name: np.zeros(classes.shape, bool) for name, classes, _ in own_truth.read_maps(few_scenes)}
    for one in masks["annotations"]:
        if names[one["category_id"]] == "ball":
            drawn[files[one["image_id"]]] |= rle.decode(one["segmentation"]["counts"], *one["segmentation"]["size"])
    ball = LABELS.split(", ").index("ball")
    true = {name: classes == ball for name, classes, _ in own_truth.read_maps(few_scenes)}
    hit = sum(int((drawn[name] & true[name]).sum()) for name in true)
    assert found["mIoU"] == pytest.approx(hit / sum(int((drawn[name] | true[name]).sum()) for name in true))


def test_masks_that_cvat_marks_as_crowds_are_objects(
    finished: Path, few_scenes: Path, of_scenes: Tree, tmp_path: Path, command: Command
) -> None:
    def crowds(tree: Tree) -> None:
        for one in tree["annotations"]:
            one |= {"iscrowd": 1, "attributes": {"occluded": False}}

    done = command("eval", finished, "--truth", own_truth.coco(few_scenes, tmp_path / "t.json", crowds), "--json")
    assert "marked as crowds" in done.stderr
    common(json.loads(done.stdout), of_scenes)


def test_a_crowd_is_not_counted(finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    def one_crowd(tree: Tree) -> None:
        tree["annotations"][-1]["iscrowd"] = 1

    whole = own_truth.coco(few_scenes, tmp_path / "whole.json")
    crowd = own_truth.coco(few_scenes, tmp_path / "crowd.json", one_crowd)
    found, before = (figures(command, finished, "--truth", one) for one in (crowd, whole))
    objects = sum(len(np.unique(instances)) - 1 for _, _, instances in own_truth.read_maps(few_scenes))
    hits = round(before["mask recall"] * objects)
    assert found["images"] == 6 and round(found["mask recall"] * (objects - 1)) in (hits - 1, hits)
    assert found["mask recall"] != before["mask recall"] or found["mIoU"] != before["mIoU"]


def refusal(command: Command, run: Path, *options: object) -> str:
    done = command("eval", run, *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def twice(tree: Tree) -> None:
    tree["images"].append({**tree["images"][0], "id": 999})


def wrong_size(tree: Tree) -> None:
    tree["annotations"][0]["segmentation"]["size"] = [3, 4]


def same_id(tree: Tree) -> None:
    tree["categories"][1]["id"] = tree["categories"][0]["id"]


def other_names(tree: Tree) -> None:
    for number, one in enumerate(tree["images"]):
        one["file_name"] = f"other-{number}.png"


def other_labels(tree: Tree) -> None:
    for one in tree["categories"]:
        one["name"] += "x"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (twice, "has 2 images of the name 'scene-00001.png'"),
        (wrong_size, r"the segmentation of annotation 1 has run lengths of the size [3, 4]"),
        (same_id, "two categories have the id 3"),
        (other_names, "None of the 6 images of the run is in the truth"),
        (other_labels, "none of the run's labels"),
        (lambda tree: tree.pop("images"), "the file has no images"),
        (lambda tree: tree.update(annotations=5), "is wrong"),
        (lambda tree: tree["annotations"][0].update(category_id=1), "there is no category 1"),
        (lambda tree: tree["annotations"][0].update(image_id=1), "there is no image 1"),
        (lambda tree: tree.update(categories=[], annotations=[]), "has no categories"),
    ],
)
def test_a_wrong_coco_file_is_refused(
    change: Any, reason: str, finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    truth = own_truth.coco(few_scenes, tmp_path / "t.json", change)
    assert reason in refusal(command, finished, "--truth", truth)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"{]", "is not JSON"),
        (b"[1]", "holds a list"),
        (b"\xff\xfe", "is not JSON"),
        (b"{}", "has no"),
    ],
)
def test_what_is_no_coco_file_is_refused(
    content: bytes, reason: str, finished: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "t.json").write_bytes(content)
    assert reason in refusal(command, finished, "--truth", tmp_path / "t.json")


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((8, 8, 3), np.uint8), "it has 3 channels"),
        (np.full((8, 8), 20, np.uint8), "has the value 20"),
        (np.full((8, 8), 254, np.uint8), "from 0 to 19"),
    ],
)
def test_a_wrong_class_map_is_refused(
    pixels: Any, reason: str, finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    folder = own_truth.class_maps(few_scenes, tmp_path / "maps")
    Image.fromarray(pixels).save(min(folder.glob("*.png")))
    assert reason in refusal(command, finished, "--truth", folder)


def test_a_class_map_that_is_no_image_is_refused(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    folder = own_truth.class_maps(few_scenes, tmp_path / "maps")
    min(folder.glob("*.png")).write_bytes(b"")
    assert "cannot be read as an image" in refusal(command, finished, "--truth", folder)


def test_an_image_of_another_size_is_left_out_and_a_rotation_is_named(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    folder = own_truth.class_maps(few_scenes, tmp_path / "maps")
    files = sorted(folder.glob("*.png"))
    with Image.open(files[0]) as opened:
        sides = opened.size
        opened.transpose(Image.Transpose.ROTATE_90).save(files[0])
    done = command("eval", finished, "--truth", folder, "--json")
    assert json.loads(done.stdout)["images"] == 5
    assert ("before its EXIF rotation" in done.stderr) == (sides[0] != sides[1])
    for path in files:
        Image.new("L", (3, 5)).save(path)
    done = command("eval", finished, "--truth", folder)
    assert done.returncode == 2 and "No image can be scored: 6 images" in done.stderr


def test_options_that_do_not_fit_are_refused(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    truth = own_truth.coco(few_scenes, tmp_path / "t.json")
    both = ("--truth", truth, "--dataset", "scenes", "--root", few_scenes)
    assert "either --dataset" in refusal(command, finished, *both)
    assert "either --dataset" in refusal(command, finished)
    assert "needs --root" in refusal(command, finished, "--dataset", "scenes")
    assert "There is no truth" in refusal(command, finished, "--truth", tmp_path / "none")
    assert "no list of its classes" in refusal(command, finished, "--truth", few_scenes / "truth")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "classes.txt").write_text("sky\n")
    assert "has no class maps" in refusal(command, finished, "--truth", tmp_path / "empty")
    listed = tmp_path / "names.json"
    listed.write_text('{"classes": {"a": "sky"}}')
    options = ("--truth", few_scenes / "truth", "--truth-classes", listed)
    assert "is not a list of classes" in refusal(command, finished, *options)


def test_names_of_images(tmp_path: Path) -> None:
    found = match_images(["a/x.jpg", "b/x.jpg", "y.jpg"], ["a/x.jpg", "z/y.jpg"], True, tmp_path)
    assert found.places == {"a/x.jpg": 0, "y.jpg": 1} and found.ambiguous == 0
    found = match_images(["a/x.jpg", "b/x.jpg", "y.jpg"], ["x", "y"], False, tmp_path)
    assert found.places == {"y.jpg": 1} and found.ambiguous == 2
    found = match_images(["a.b/x.jpg"], ["a.b/x.jpg"], False, tmp_path)
    assert found.places == {"a.b/x.jpg": 0}
    with pytest.raises(UsageError, match="None of the 1 image"):
        match_images(["x.jpg"], ["a/x.jpg", "b/x.jpg"], True, tmp_path)


def test_names_of_labels(tmp_path: Path) -> None:
    words = {"car": ("automobile", "car"), "traffic light": ("signal",)}
    found = match_labels(["Automobile", "Traffic_Light", "sku"], ["car", "traffic light", "sky"], words, tmp_path)
    assert found.labels == {"Automobile": "car", "Traffic_Light": "traffic light", "sku": "sku"}
    assert found.missing == ("sku",) and found.unused == ("sky",)
    assert "'sku' Did you mean 'sky'?" in found.notes(["car", "traffic light", "sky"])[0]


def test_from_python_as_the_command(finished: Path, few_scenes: Path, of_scenes: Tree, tmp_path: Path) -> None:
    run = ovseg_batch.Run(finished)
    found = run.evaluate(truth=own_truth.coco(few_scenes, tmp_path / "t.json"))
    assert found.images == 6 and found.figures["mIoU"] == of_scenes["mIoU"]
    assert found.intervals["mIoU"] == tuple(of_scenes["intervals"]["mIoU"])
    assert found.classes["sky"]["IoU"] == of_scenes["classes"]["sky"]["IoU"] and not math.isnan(found.figures["PQ"])
    assert run.evaluate(dataset="scenes", root=few_scenes).figures == found.figures
    with pytest.raises(UsageError, match="either truth= or dataset="):
        run.evaluate()


@pytest.mark.parametrize("kind", ["coco", "panoptic"])
def test_a_truth_without_objects(kind: str, finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    truth = getattr(own_truth, kind)(few_scenes, tmp_path / "t.json")
    tree = json.loads(truth.read_text())
    tree["annotations"] = [{**one, "segments_info": []} for one in tree["annotations"]] if kind == "panoptic" else []
    truth.write_text(json.dumps(tree))
    for name in (truth.with_suffix("").glob("*.png")) if kind == "panoptic" else ():
        Image.new("RGB", Image.open(name).size).save(name)
    done = command("eval", finished, "--truth", truth, "--json")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 6 and found["mIoU"] == (0 if kind == "coco" else None)
