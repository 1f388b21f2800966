"""Data sets: their files, their layouts, and figures that equal those of the libraries that define them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovseg_batch import datasets, scenes
from ovseg_batch.evaluate.generation import clip_score, frechet_distance
from ovseg_batch.evaluate.instances import InstanceScore
from ovseg_batch.evaluate.run import evaluate
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.workdir.results import finished_images
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command, run_arguments
from tests.harness.image_variants import annotation
from tests.support import layouts

SEEDS = list(scenes.HELD_OUT_SEEDS[1100:1103])
SIZES = {
    "voc21": 20,
    "voc20": 20,
    "coco-stuff": 171,
    "coco-object": 80,
    "ade20k": 150,
    "context": 59,
    "context60": 59,
    "coco-stuff10k": 171,
    "cityscapes": 19,
    "context459": 459,
    "ade847": 847,
}


@pytest.mark.parametrize("name", datasets.NAMES)
def test_every_data_set_has_its_classes(name: str) -> None:
    dataset = datasets.load(name)
    assert len(dataset.classes) == len(set(dataset.classes)) == SIZES.get(name, len(dataset.classes))
    assert len(dataset.words) == len(dataset.classes) and all(dataset.words)
    assert set(dataset.novel) | set(dataset.things) <= set(dataset.classes)


def test_the_base_and_novel_split_is_48_and_17() -> None:
    dataset = datasets.load("coco-ov")
    assert len(dataset.novel) == 17 and len(dataset.classes) == 65


def test_scenes_are_the_scenes() -> None:
    dataset = datasets.load("scenes")
    assert dataset.classes == scenes.CLASSES and dataset.things == scenes.THING_NAMES


def evaluated(name: str, tmp_path: Path, command: Command, *manifest_options: str) -> Path:
    """The documented commands on a fake copy; the workdir."""
    dataset = datasets.load(name)
    if not (tmp_path / "data").is_dir():
        layouts.write(dataset, tmp_path / "data", SEEDS)
    (tmp_path / "config.yaml").write_text(layouts.settings(dataset))
    listed = command("manifest", tmp_path / "data", "--dataset", name, "-o", tmp_path / "m.parquet", *manifest_options)
    assert listed.returncode == 0 and listed.stderr == "", listed.stderr
    assert listed.stdout.startswith("3 images")
    done = command("run", tmp_path / "m.parquet", "-o", tmp_path / "run", "-c", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


@pytest.mark.slow("every data set is read in its published layout")
@pytest.mark.parametrize("name", layouts.MAKERS)
@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")  # pycocotools has one of numpy's
def test_a_copy_of_its_layout_evaluates_without_a_warning(name: str, tmp_path: Path, command: Command) -> None:
    workdir = evaluated(name, tmp_path, command)
    done = command("eval", workdir, "--dataset", name, "--root", tmp_path / "data", "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 3 and found["vocabulary"] == "open"
    if name == "coco-ov":
        assert found["mask AP50"] > 0.3 and "mIoU" not in found
        assert {"mask AP base", "mask AP novel"} <= set(found)
    else:
        assert found["mIoU"] > 0.6, found
    assert len(found["classes"]) == len(datasets.load(name).scored)


def test_coco_objects_from_the_json_alone(tmp_path: Path, command: Command) -> None:
    dataset = datasets.load("coco-object")
    layouts.MAKERS["coco-ov"](dataset, tmp_path / "data", [scenes.render(seed) for seed in SEEDS])
    workdir = evaluated("coco-object", tmp_path, command)
    found = json.loads(
        command("eval", workdir, "--dataset", "coco-object", "--root", tmp_path / "data", "--json").stdout
    )
    assert found["mIoU"] > 0.6 and found["mask AP50"] > 0.3 and found["PQ"] > 0.4, found


@pytest.mark.slow("a run and its evaluation")
def test_coco_objects_from_the_maps_of_coco_stuff(tmp_path: Path, command: Command) -> None:
    dataset = datasets.load("coco-object")
    layouts.coco_object_from_stuff(dataset, tmp_path / "data", [scenes.render(seed) for seed in SEEDS])
    workdir = evaluated("coco-object", tmp_path, command)
    done = command("eval", workdir, "--dataset", "coco-object", "--root", tmp_path / "data", "--json")
    assert json.loads(done.stdout)["mIoU"] > 0.6 and done.stderr == ""


def test_the_oracle_is_asked_for_what_is_there_alone(tmp_path: Path, command: Command) -> None:
    workdir = evaluated("voc21", tmp_path, command, "--oracle")
    done = command("eval", workdir, "--dataset", "voc21", "--root", tmp_path / "data", "--json")
    assert json.loads(done.stdout)["vocabulary"] == "oracle"
    coco = json.loads((workdir / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    dataset = datasets.load("voc21")
    for image, seed in zip(coco["images"], SEEDS, strict=True):
        present = {layouts.class_of(dataset)[thing.name] for thing in scenes.render(seed).things}
        found = {names[a["category_id"]] for a in coco["annotations"] if a["image_id"] == image["id"]}
        assert found <= present


def test_labels_of_a_data_set_bring_its_thresholds_unless_the_config_has_others(tmp_path: Path) -> None:
    from ovseg_batch.config import load_config

    config = load_config("demo", flags={"labels": "dataset:voc21"}, environment={})
    assert len(config.labels) == 20 and config.labels[3].words == ("ship",)
    assert config.dense.logit_scale == 65 and config.dense.prob_threshold == 0.1 and len(config.background) == 26
    other = load_config("demo", overrides=["dense.logit_scale=40"], flags={"labels": "dataset:voc21"}, environment={})
    assert other.dense.logit_scale == 40 and other.dense.area_threshold == 0.1


def test_mask_ap_is_pycocotools_own(tmp_path: Path, command: Command) -> None:
    """Scored shard by shard, kept as arrays and added up, against COCOeval on everything at once."""
    workdir = Workdir(evaluated("coco-ov", tmp_path, command))
    ours = evaluate(workdir, datasets.load("coco-ov"), tmp_path / "data").figures()
    store = workdir.stores()[-1]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "data" / "coco" / "annotations" / "instances_val2017.json"))
        identity = {c["name"]: c["id"] for c in truth.dataset["categories"]}
        images = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
        results = [
            {
                "image_id": images[Path(image.row.file_name).name],
                "category_id": identity[one.category],
                "score": one.score,
                "segmentation": {"size": [*image.size], "counts": one.rle},
            }
            for image in finished_images(Manifest.open(workdir.manifest), store)
            for one in image.annotations
        ]
        whole = COCOeval(truth, truth.loadRes(results), "segm")
        whole.evaluate()
        whole.accumulate()
        whole.summarize()
    for name, value in zip(("mask AP", "mask AP50", "mask AP75"), whole.stats[:3], strict=True):
        assert abs(ours[name] - value) <= 1e-9, name


@pytest.fixture
def scored(finished: Path, few_scenes: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of a finished run and of the truth of its scenes, which a test may change."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(few_scenes, tmp_path / "truth")
    return tmp_path / "run", tmp_path / "truth"


def figures(command: Command, run: Path, truth: Path) -> tuple[dict[str, float], str]:
    done = command("eval", run, "--dataset", "scenes", "--root", truth, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def a_map(truth: Path, layout: str = datasets.load("scenes").truth[0].path) -> Path:
    """The first of the class maps, or of the maps of another layout."""
    return min(truth.glob(layout.format(stem="*", name="*")))


def test_a_corrected_truth_is_scored_again(scored: tuple[Path, Path], command: Command) -> None:
    """Size and time of the file stay the same."""
    run, truth = scored
    before, _ = figures(command, run, truth)
    path = a_map(truth)
    times, pixels = path.stat(), np.array(Image.open(path))
    Image.fromarray(np.where(pixels == pixels[0, 0], 3, pixels).astype(np.uint8)).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after, _ = figures(command, run, truth)
    for kept in run.glob("stages/*/eval/*/*.npz"):
        kept.unlink()
    assert before["mIoU"] != after["mIoU"] and after == figures(command, run, truth)[0]


def test_changed_masks_are_scored_again(
    few_scenes: Path, tmp_path: Path, scored: tuple[Path, Path], command: Command
) -> None:
    """`run --update` after an image was turned: the fingerprint of the stage stays, its masks do not."""
    shutil.copytree(few_scenes / "images", images := tmp_path / "images")
    assert command(*run_arguments(images, tmp_path / "updated")).returncode == 0
    before, _ = figures(command, tmp_path / "updated", scored[1])
    first = min(images.iterdir())
    with Image.open(first) as opened:
        opened.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(first)
    assert command(*run_arguments(images, tmp_path / "updated", "--update")).returncode == 0
    after, _ = figures(command, tmp_path / "updated", scored[1])
    assert after["images"] == before["images"] and after["mIoU"] < before["mIoU"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "earlier version"])
def test_damaged_kept_scores_are_computed_again(damage: str, scored: tuple[Path, Path], command: Command) -> None:
    run, truth = scored
    before, _ = figures(command, run, truth)
    path = sorted(run.glob("stages/*/eval/*/*.npz"))[1]
    whole = path.read_bytes()
    middle = len(whole) // 2
    if damage == "earlier version":
        with np.load(path) as arrays:
            np.savez(path, **{name: array for name, array in arrays.items() if "digest" not in name})
    else:
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"flip": flipped, "cut": whole[:middle], "empty": b"", "text": b"scores"}[damage])
    after, log = figures(command, run, truth)
    assert after == before and f"kept scores {path} are damaged" in log and "Traceback" not in log
    assert figures(command, run, truth) == (before, "")


@pytest.mark.parametrize("layout", [datasets.load("scenes").truth[0].path, datasets.load("scenes").instances])
def test_an_image_of_another_size_than_its_truth_is_left_out(
    layout: str, scored: tuple[Path, Path], command: Command
) -> None:
    run, truth = scored
    path = a_map(truth, layout)
    with Image.open(path) as opened:
        width, height = opened.size
        opened.crop((0, 0, width - 1, height)).save(path)
    for _ in range(2):  # the second time the kept scores are read
        found, log = figures(command, run, truth)
        assert found["images"] == 5
        image = path.name.partition(".png")[0]
        assert f"{image}.png is {width} × {height} in the run and {width - 1} × {height} in the truth" in log


def test_an_image_of_another_size_than_in_the_json_is_left_out(tmp_path: Path, command: Command) -> None:
    workdir = evaluated("coco-ov", tmp_path, command)
    file = tmp_path / "data" / "coco" / "annotations" / "instances_val2017.json"
    tree = json.loads(file.read_text())
    changed = tree["images"][0]
    own = [one for one in tree["annotations"] if one["image_id"] == changed["id"]]
    changed["height"] += 8
    tree["annotations"] = [one for one in tree["annotations"] if one not in own]
    file.write_text(json.dumps(tree))
    done = command("eval", workdir, "--dataset", "coco-ov", "--root", tmp_path / "data", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["images"] == 2
    assert Path(changed["file_name"]).name in done.stderr and "left out of the figures" in done.stderr


def test_precision_recall_and_retrieval_by_hand() -> None:
    from ovseg_batch.evaluate.truth.coco_file import Instance
    from ovseg_batch.io import rle

    def drawn(x: int) -> np.ndarray:
        mask = np.zeros((10, 40), bool)
        mask[:, x : x + 10] = True
        return mask

    def square(x: int) -> bytes:
        return rle.encode(drawn(x))

    counted = InstanceScore(["a", "b"])
    found = [annotation("a", drawn(x), score) for score, x in ((0.9, 30), (0.8, 0))]
    counted.add(0, (10, 40), found, [Instance("a", square(0), 100, False), Instance("b", square(10), 100, False)])
    figures = counted.figures({})
    assert figures["mask precision"] == 0.5 and figures["mask recall"] == 0.5 and figures["mask F1"] == 0.5
    assert figures["retrieval@1"] == 0 and figures["retrieval@5"] == 0.5


def test_shards_are_scored_once_and_the_worst_are_drawn(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    sheet = tmp_path / "worst.png"
    evaluation = ("eval", finished, "--dataset", "scenes", "--root", few_scenes, "--sheet", sheet, "--classes")
    first = command(*evaluation)
    assert first.returncode == 0, first.stderr
    assert "mIoU things" in first.stdout and "PQ" in first.stdout and "balloon" in first.stdout
    kept = {path: path.stat().st_mtime_ns for path in finished.glob("stages/*/eval/*/*.npz")}
    assert len(kept) == 3
    next(iter(kept)).unlink()
    assert command(*evaluation).stdout == first.stdout
    again = {path: path.stat().st_mtime_ns for path in finished.glob("stages/*/eval/*/*.npz")}
    assert len([path for path in kept if kept[path] != again[path]]) == 1
    with Image.open(sheet) as drawn:
        assert drawn.height > 6 * 224
    mine = tmp_path / "mine.png"
    Image.new("RGB", (4, 4)).save(mine)
    content = mine.read_bytes()
    for option in (("--sheet", mine), ("--thresholds", mine, "--precision", "0.9")):
        refused = command("eval", finished, "--dataset", "scenes", "--root", few_scenes, *option)
        assert refused.returncode == 2 and "this command did not write it" in refused.stderr
    assert mine.read_bytes() == content


def test_what_cannot_be_evaluated(finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    done = command("eval", finished, "--dataset", "ade20k", "--root", tmp_path)
    assert done.returncode == 2 and "does not hold ADE20K" in done.stderr
    layouts.write(datasets.load("ade20k"), tmp_path / "ade", SEEDS)
    assert command("run", few_scenes / "images", "-o", tmp_path / "run", "--labels", "sun, brick").returncode == 0
    done = command("eval", tmp_path / "run", "--dataset", "ade20k", "--root", tmp_path / "ade")
    assert done.returncode == 2 and "--labels dataset:ade20k" in done.stderr
    done = command("eval", finished, "--dataset", "ade20k", "--root", tmp_path / "ade")
    assert done.returncode == 2 and "There is no truth" in done.stderr
    assert command("manifest", few_scenes, "-o", tmp_path / "m.parquet", "--oracle").returncode == 2


def test_the_frechet_distance_of_gaussians_that_are_known() -> None:
    """Diagonal covariances: the distance is the sum of (σ - σ')² and the squared step between the means."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(400, 3))
    white = (raw - raw.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    real, generated = white * [1.0, 2.0, 0.5], white * [3.0, 2.0, 1.0] + [0.0, 1.0, 2.0]
    assert frechet_distance(real, generated) == pytest.approx((1 - 3) ** 2 + (0.5 - 1) ** 2 + 1 + 4, abs=1e-9)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two images of each"):
        frechet_distance(real[:1], generated)


def test_the_clip_score_is_a_mean_of_cosines() -> None:
    assert clip_score(np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(0.9)
