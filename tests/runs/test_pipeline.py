"""The main job through the command line: outputs, resume, what is redone and what is not, exit codes, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ovseg_batch.io import locks
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.store import PUBLISH_LOCK, Workdir
from tests.conftest import Command, data_files, run_arguments


def commit_times(workdir: Path, stage: str) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (workdir / "stages").glob(f"{stage}-*/commits/*/*.json")}


def test_outputs_are_what_coco_tools_take(finished: Path) -> None:
    coco = COCO(str(finished / "annotations.json"))
    images = coco.loadImgs(coco.getImgIds())
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(images) == 6
    assert len(annotations) > 12
    assert len({a["id"] for a in annotations}) == len(annotations)
    assert all(a["iscrowd"] == 0 and isinstance(a["segmentation"]["counts"], str) for a in annotations)
    for image in images:
        size = [image["height"], image["width"]]
        claimed = np.zeros(size, int)
        for a in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco_mask.decode(a["segmentation"])
            assert a["segmentation"]["size"] == size == list(mask.shape)
            assert a["area"] == mask.sum() > 0
            assert a["bbox"] == coco_mask.toBbox(a["segmentation"]).tolist()
            assert 0 <= a["score"] <= 1 and 0 <= a["coverage"] <= 1
            claimed += mask
        assert claimed.max() == 1


def test_no_other_run_changes_shards_while_outputs_are_written(
    few_scenes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: list[bool] = []

    def publish_edited(workdir: Workdir, store: object) -> None:
        for folder in workdir.root.glob("stages/*-*"):
            with locks.if_free(folder / PUBLISH_LOCK) as granted:
                free.append(granted)

    monkeypatch.setattr(pipeline, "publish_edited", publish_edited)
    assert command(*run_arguments(few_scenes / "images", tmp_path / "run")).returncode == 0
    assert free == [False, False]


def test_run_leaves_what_people_look_for(finished: Path, command: Command) -> None:
    assert {"annotations.json", "failures.csv", "config.yaml", "manifest.parquet", "stages"} == {
        p.name for p in finished.iterdir()
    }
    info = json.loads((finished / "annotations.json").read_text())["info"]
    assert set(info["stages"]) == {"dense", "refine"}
    state = json.loads(command("status", finished, "--json").stdout)
    assert state["complete"]
    assert [(s["name"], s["shards_done"], s["ok"]) for s in state["stages"]] == [("dense", 3, 6), ("refine", 3, 6)]
    tables = [pq.read_table(p) for p in finished.glob("stages/refine-*/data/*/*.parquet")]
    assert sorted(row for table in tables for row in table["row"].to_pylist()) == list(range(6))


def test_masks_mean_something(finished: Path, few_scenes: Path, command: Command) -> None:
    found = json.loads(command("eval", finished, "--dataset", "scenes", "--root", few_scenes, "--json").stdout)
    assert found["mIoU"] > 0.6
    assert found["pixel accuracy"] > 0.8


def test_same_command_again_redoes_nothing(finished: Path, few_scenes: Path, command: Command) -> None:
    before = data_files(finished)
    again = command(*run_arguments(few_scenes / "images", finished))
    assert again.returncode == 0
    assert "computing" not in again.stderr
    assert data_files(finished) == before


def test_speed_settings_redo_nothing(copy: Path, few_scenes: Path, command: Command) -> None:
    again = command(
        *run_arguments(few_scenes / "images", copy, "--set", "run.batch_size=3", "--set", "run.decode_threads=1")
    )
    assert again.returncode == 0
    assert len(list((copy / "stages").glob("*-*"))) == 2
    assert "3 of 3 shards already committed" in again.stderr


def test_refine_threshold_redoes_refine_alone(copy: Path, few_scenes: Path, command: Command) -> None:
    dense = commit_times(copy, "dense")
    again = command(*run_arguments(few_scenes / "images", copy, "--set", "refine.vote=0.9"))
    assert again.returncode == 0
    assert commit_times(copy, "dense") == dense
    assert len(list((copy / "stages").glob("refine-*"))) == 2


def test_dry_run_writes_nothing(copy: Path, few_scenes: Path, command: Command) -> None:
    before = sorted(copy.rglob("*"))
    done = command(*run_arguments(few_scenes / "images", copy, "--set", "refine.vote=0.9", "--dry-run"))
    assert done.returncode == 0
    assert "6 images in 3 shards" in done.stdout
    assert [line.split()[2] for line in done.stdout.splitlines()[3:-1]] == ["0", "3"]
    assert sorted(copy.rglob("*")) == before


@pytest.mark.slow("one worker or many, and any size of a shard, give the same bytes")
def test_two_workers_give_the_same_files(finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run", "--workers", "2"))
    assert done.returncode == 0, done.stderr
    ours, theirs = data_files(tmp_path / "run"), data_files(finished)
    assert {k: v for k, v in ours.items() if k != "config.yaml"} == {
        k: v for k, v in theirs.items() if k != "config.yaml"
    }


def test_damaged_shard_is_redone(copy: Path, finished: Path, few_scenes: Path, command: Command) -> None:
    victim = next(copy.glob("stages/dense-*/data/000/000001.npz"))
    victim.write_bytes(victim.read_bytes()[:-100])
    again = command(*run_arguments(few_scenes / "images", copy))
    assert "dense: computing shards 1" in again.stderr
    assert data_files(copy) == data_files(finished)


def test_poison_images_cost_their_rows_only(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "images"
    shutil.copytree(few_scenes / "images", folder)
    good = (folder / "scene-00002.jpg").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "torn.jpg").write_bytes(good[: len(good) // 2])
    Image.new("RGB", (40, 30)).save(folder / "tiny.png")
    done = command(*run_arguments(folder, tmp_path / "run"))
    assert done.returncode == 3, done.stderr
    lines = (tmp_path / "run" / "failures.csv").read_text().splitlines()
    assert {(line.split(",")[1], line.split(",")[3]) for line in lines[1:]} == {
        ("empty.jpg", "empty"),
        ("text.jpg", "not_an_image"),
        ("torn.jpg", "truncated"),
    }
    assert "3 images failed" in done.stdout
    coco = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert len(coco["images"]) == 7
    state = json.loads(command("status", tmp_path / "run", "--json").stdout)
    assert [s["failed"] for s in state["stages"]] == [
        {"empty": 1, "not_an_image": 1, "truncated": 1},
        {"upstream": 3},
    ]
    stopped = command(*run_arguments(folder, tmp_path / "strict", "--max-failure-rate", "0.1"))
    assert stopped.returncode == 1
    assert "more than run.max_failure_rate: 0.1" in stopped.stderr
    assert "empty.jpg" in (tmp_path / "strict" / "failures.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("{empty}", "--labels", "sky"), "no image in"),
        (("{images}",), "No labels"),
        (("{images}", "--labels", "sky, gras"), "does not know the label 'gras'. Did you mean 'grass'?"),
        (("{images}", "--labels", "sky", "--set", "refine.votes=1"), "Did you mean 'refine.vote'?"),
        (("{images}", "--labels", "sky", "--set", "dense.attention=cas"), "Did you mean 'csa'?"),
        (("{images}", "--labels", "sky", "--set", "clip.model=openai-b61"), "Did you mean 'openai-b16'?"),
        (("{images}", "--labels", "sky", "--set", "sam.model=sam2.1-huge"), "There is no SAM2 model"),
        (("{images}", "--labels", "sky", "--device", "cuda:7"), "PyTorch finds"),
        (
            ("{images}", "--labels", "sky", "--set", "dense.views=itaclip", "--set", "dense.key_smoothing=1"),
            "goes with dense.views: plain alone",
        ),
        (("{images}", "--labels", "sky", "-c", "{empty}/no.yaml"), "There is no config file"),
    ],
)
def test_what_cannot_mean_anything_is_a_usage_error(
    few_scenes: Path, tmp_path: Path, command: Command, arguments: tuple[str, ...], text: str
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [a.format(images=few_scenes / "images", empty=tmp_path / "empty") for a in arguments]
    done = command("run", *filled, "-o", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert text == "no image in" or not (tmp_path / "run").exists()


def test_weights_that_are_not_here_name_the_command(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    done = command(
        "run", few_scenes / "images", "-o", tmp_path, "--labels", "sky", "--set", "clip.model=openai-b16",
        HF_HUB_CACHE=str(tmp_path / "hub"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "ovseg-batch models fetch openai-b16" in done.stderr


def test_workdir_of_another_manifest(copy: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(few_scenes / "images", tmp_path / "other")
    next((tmp_path / "other").glob("*.png")).unlink()
    before = data_files(copy)
    done = command(*run_arguments(tmp_path / "other", copy))
    assert done.returncode == 2
    assert "belongs to another manifest (6 images" in done.stderr
    assert data_files(copy) == before


def test_workdir_that_cannot_be_written(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("")
    done = command(*run_arguments(few_scenes / "images", tmp_path / "file" / "run"))
    assert done.returncode == 1
    assert "Cannot write to the workdir" in done.stderr


def test_status_of_what_is_no_workdir(tmp_path: Path, command: Command) -> None:
    done = command("status", tmp_path)
    assert done.returncode == 2
    assert "is not a workdir" in done.stderr


def test_manifest_is_an_input(few_scenes: Path, tmp_path: Path, finished: Path, command: Command) -> None:
    made = command("manifest", few_scenes / "images", "-o", tmp_path / "m.parquet", "--shard-rows", 2)
    assert made.stdout.startswith("6 images in 3 shards")
    assert command(*run_arguments(tmp_path / "m.parquet", tmp_path / "run")).returncode == 0
    assert data_files(tmp_path / "run") == data_files(finished)


def test_synonyms_background_and_semantic_output(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "config.yaml").write_text(
        "extends: demo\nlabels:\n  plants: {synonyms: [tree, flower, grass], threshold: 0.2}\n  car: car\n"
        "background: [sky, water, sand, road, snow, brick, wood]\nrefine: {output: semantic}\n"
    )
    done = command("run", few_scenes / "images", "-o", tmp_path / "run", "-c", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    coco = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["plants", "car"]
    pairs = [(a["image_id"], a["category_id"]) for a in coco["annotations"]]
    assert pairs and len(pairs) == len(set(pairs))


@pytest.mark.slow("every method gives masks that agree with the ground truth")
@pytest.mark.parametrize(
    "settings",
    [
        ["refine.method=guided"],
        ["refine.method=trident"],
        ["refine.vote=soft"],
        ["dense.attention=corrclip", "refine.method=automatic", "refine.vote=0", "propose.points_per_side=8"],
        ["dense.attention=itaclip", "dense.views=itaclip", "refine.pamr=2"],
        ["dense.attention=maskclip", "dense.key_smoothing=1", "dense.prompt_denoising=0.2"],
        ["dense.attention=naclip", "refine.method=none", "refine.pamr=10"],
    ],
    ids=lambda settings: settings[0],
)
def test_other_methods_mean_something_too(
    few_scenes: Path, tmp_path: Path, command: Command, settings: list[str]
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    done = command(*run_arguments(few_scenes / "images", tmp_path / "run", *options))
    assert done.returncode == 0, done.stderr
    found = json.loads(command("eval", tmp_path / "run", "--dataset", "scenes", "--root", few_scenes, "--json").stdout)
    assert found["mIoU"] > 0.5, found


def test_a_definition_makes_another_run(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    config = tmp_path / "defined.yaml"
    config.write_text("extends: demo\nlabels:\n- {name: sky, definition: the blue above}\n- {name: grass}\n")
    done = command("run", few_scenes / "images", "-o", tmp_path / "run", "-c", config)
    assert done.returncode == 0, done.stderr
    plain = command("run", few_scenes / "images", "-o", tmp_path / "run", "--labels", "sky, grass", "--dry-run")
    assert "dense" in plain.stdout and plain.stdout.count("0 shards to do") == 0


def test_resolved_config_gives_the_same_run(finished: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    shutil.copy(finished / "config.yaml", tmp_path / "config.yaml")
    done = command("run", few_scenes / "images", "-o", tmp_path / "run", "-c", tmp_path / "config.yaml")
    assert done.returncode == 0
    names = {p.name for p in Workdir(finished).root.glob("stages/*-*")}
    assert {p.name for p in (tmp_path / "run").glob("stages/*-*")} == names


def test_demo_leaves_images_truth_and_an_ordinary_workdir(tmp_path: Path, command: Command) -> None:
    done = command("demo", "-o", tmp_path / "demo", "--images", "3")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "demo" / "run" / "annotations.json") in done.stdout
    assert "mIoU 0." in done.stdout
    assert {p.suffix for p in (tmp_path / "demo" / "images").iterdir()} == {".png", ".jpg"}
    assert len(list((tmp_path / "demo" / "truth").glob("*.classes.png"))) == 3
    assert json.loads(command("status", tmp_path / "demo" / "run", "--json").stdout)["complete"]


def test_embedded_models_come_with_a_caution(finished: Path, few_scenes: Path, command: Command) -> None:
    assert "trained on rendered scenes only" in command(*run_arguments(few_scenes / "images", finished)).stderr
