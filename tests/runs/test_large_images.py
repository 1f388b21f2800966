"""Images many times larger than the input of the models; and rows with some of the labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovseg_batch import Run, scenes
from tests.conftest import LABELS, Command

SIDE = 192  # of a scene in the mosaic
ACROSS = 5


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of 25 scenes, with its truth."""
    folder = tmp_path_factory.mktemp("mosaic")
    whole: dict[str, list[np.ndarray[Any, Any]]] = {"image": [], "classes": [], "instances": []}
    seeds = iter(scenes.HELD_OUT_SEEDS[1200 : 1200 + ACROSS**2])
    for _ in range(ACROSS):
        row = [scenes.render(next(seeds)) for _ in range(ACROSS)]
        for name, parts in whole.items():
            parts.append(np.concatenate([getattr(scene, name)[:SIDE, :SIDE] for scene in row], axis=1))
    maps = {name: np.concatenate(parts) for name, parts in whole.items()}
    for y in range(ACROSS):
        for x in range(ACROSS):
            part = maps["instances"][y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE]
            part[part > 0] += 7 * (y * ACROSS + x)
    for sub in ("images", "truth"):
        (folder / sub).mkdir()
    Image.fromarray(maps["image"]).save(folder / "images" / "mosaic.png")
    for name in ("classes", "instances"):
        Image.fromarray(maps[name]).save(folder / "truth" / f"mosaic.png.{name}.png")
    return folder


def figures(folder: Path, workdir: Path, command: Command, *options: str) -> dict[str, float]:
    done = command("run", folder / "images", "-o", workdir, "--labels", LABELS, *options)
    assert done.returncode == 0, done.stderr
    evaluated = command("eval", workdir, "--dataset", "scenes", "--root", folder, "--json")
    found: dict[str, float] = json.loads(evaluated.stdout)
    return found


def test_views_around_objects_beat_one_look_at_everything(mosaic: Path, tmp_path: Path, command: Command) -> None:
    whole = figures(mosaic, tmp_path / "run", command)
    near = figures(mosaic, tmp_path / "run", command, "--set", "refine.tile=320")
    assert near["mask AP"] > whole["mask AP"] + 0.05, (near, whole)
    assert near["boundary F1"] > whole["boundary F1"], (near, whole)


def test_tiles_larger_than_the_image_change_nothing(mosaic: Path, tmp_path: Path, command: Command) -> None:
    whole = figures(mosaic, tmp_path / "run", command)
    same = figures(mosaic, tmp_path / "run", command, "--set", "refine.tile=5000")
    assert whole == same


def test_the_long_side_is_a_setting(mosaic: Path, tmp_path: Path, command: Command) -> None:
    fine = figures(mosaic, tmp_path / "run", command, "--set", "refine.method=none")
    coarse = figures(mosaic, tmp_path / "run", command, "--set", "refine.method=none", "--set", "dense.long_side=320")
    assert fine["mIoU"] > coarse["mIoU"] + 0.1


@pytest.mark.parametrize("method", ["dense", "proposals"])
def test_a_row_may_ask_for_some_of_the_labels(method: str, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    names = sorted(path.name for path in (few_scenes / "images").iterdir())
    lines = ["path,prompts", f"{names[0]},", f'{names[1]},"sky, grass"', f"{names[2]},zebra"]
    listed = few_scenes / "images" / f"{method}.csv"
    listed.write_text("\n".join(lines) + "\n")
    options = ["--set", f"method={method}", "--set", "clip.model=demo-token"] if method == "proposals" else []
    options += [
        "--set",
        "propose.predicted_iou=0.6",
        "--set",
        "propose.stability=0.7",
        "--set=propose.points_per_side=8",
    ]
    done = command("run", listed, "-o", tmp_path / "run", "--labels", LABELS, *options)
    listed.unlink()
    assert done.returncode == 3, done.stderr
    coco = json.loads((tmp_path / "run" / "annotations.json").read_text())
    category = {c["id"]: c["name"] for c in coco["categories"]}
    named: dict[str, set[str]] = {i["file_name"]: set() for i in coco["images"]}
    by_id = {i["id"]: i["file_name"] for i in coco["images"]}
    for annotation in coco["annotations"]:
        named[by_id[annotation["image_id"]]].add(category[annotation["category_id"]])
    assert named[names[1]] <= {"sky", "grass"} and named[names[0]]
    failures = (tmp_path / "run" / "failures.csv").read_text()
    assert names[2] in failures and "'zebra' is none of the labels" in failures


def test_jpegs_decoded_smaller_show_the_same(tmp_path: Path, command: Command) -> None:
    """`dense.draft`: masks at the original size, turned by EXIF, and nearly those of the whole pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    scene = Image.fromarray(scenes.render(scenes.HELD_OUT_SEEDS[1300]).image)
    large = scene.resize((scene.width * 6, scene.height * 5), Image.Resampling.BICUBIC)
    large.save(folder / "upright.jpg", quality=92)
    exif = Image.Exif()
    exif[0x0112] = 6
    large.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", quality=92, exif=exif)
    large.save(folder / "whole.png")
    maps = {}
    for draft in ("false", "true"):
        workdir = tmp_path / draft
        settings = ("--set", f"dense.draft={draft}", "--set", "dense.short_side=224", "--set", "refine.method=none")
        done = command("run", folder, "-o", workdir, "--labels", LABELS, "--workers", "0", *settings)
        assert done.returncode == 0, done.stderr
        maps[draft] = {image.name: image.label_map(list(scenes.CLASSES)) for image in Run(workdir)}
    for name, whole in maps["false"].items():
        assert whole.shape == (large.height, large.width) == maps["true"][name].shape
        assert (whole == maps["true"][name]).mean() > 0.98
    assert np.array_equal(maps["false"]["whole.png"], maps["true"]["whole.png"])
    assert not np.array_equal(maps["false"]["upright.jpg"], maps["true"]["upright.jpg"])
