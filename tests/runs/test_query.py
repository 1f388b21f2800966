"""A query of a finished run for other words: its result equals a full run, no image is opened, nothing is copied."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from ovseg_batch.errors import UsageError
from ovseg_batch.io.bank_file import read_bank
from ovseg_batch.methods.banking import mixed_scores, nearest_others, region_features
from tests.conftest import Command

FIRST, OTHER = "sky, grass, tree, house", "car; water: water, sand; snow; sky"
SMALL = ("--set", "manifest.shard_rows=4", "--workers", "0")
KEEPING = {
    "prompted": ("--set", "dense.cache=features", "--set", "sam.cache=embeddings"),
    "guided": ("--set", "dense.cache=features", "--set", "sam.cache=embeddings", "--set", "refine.method=guided"),
    "automatic": (
        *("--set", "dense.cache=features", "--set", "refine.method=automatic"),
        *("--set", "propose.points_per_side=6"),
    ),
    "corrclip": (
        *("-c", "corrclip", "--set", "dense.cache=features", "--set", "propose.points_per_side=6"),
        *("--set", "clip.model=demo", "--set", "sam.model=demo"),
    ),
    "proposals": (
        *("-c", "proposals", "--set", "propose.points_per_side=6"),
        *("--set", "clip.model=demo-image", "--set", "sam.model=demo"),
    ),
}


@pytest.fixture
def images(few_scenes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))


@pytest.mark.slow("a query gives the masks of a full run")
@pytest.mark.parametrize("keeping", KEEPING)
def test_the_answer_is_that_of_a_full_run(images: Path, tmp_path: Path, keeping: str, command: Command) -> None:
    original, answer, full = (tmp_path / name for name in ("original", "answer", "full"))
    settings = (*SMALL, *KEEPING[keeping])
    done = command("run", images, "-o", original, "--labels", FIRST, *settings)
    assert done.returncode == 0, done.stderr
    assert command("run", images, "-o", full, "--labels", OTHER, *settings).returncode == 0
    shutil.rmtree(images)  # nobody needs them any more
    done = command("query", original, "--labels", OTHER, "-o", answer)
    assert done.returncode == 0, done.stderr
    assert (answer / "annotations.json").read_bytes() == (full / "annotations.json").read_bytes()
    assert (original / "annotations.json").read_bytes() != (full / "annotations.json").read_bytes()
    assert json.loads(command("status", answer, "--json").stdout)["complete"]
    assert command("query", original, "--labels", OTHER, "-o", answer).returncode == 0  # again: nothing to do


def test_what_was_kept_is_linked_and_outlives_the_run(images: Path, tmp_path: Path, command: Command) -> None:
    original, answer = tmp_path / "original", tmp_path / "answer"
    assert command("run", images, "-o", original, "--labels", FIRST, *SMALL, *KEEPING["prompted"]).returncode == 0
    assert command("query", original, "--labels", OTHER, "-o", answer).returncode == 0
    kept = list((answer / "stages").glob("*/data/*/*.npz"))
    assert len(kept) == 4  # two shards of dense and of encode
    assert all(path.stat().st_ino == (original / path.relative_to(answer)).stat().st_ino for path in kept)
    shutil.rmtree(original)
    assert command("verify", answer).returncode == 0


def test_without_hard_links_what_was_kept_is_pointed_at(
    images: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, answer = tmp_path / "original", tmp_path / "answer"
    assert command("run", images, "-o", original, "--labels", FIRST, *SMALL, *KEEPING["prompted"]).returncode == 0

    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    assert command("query", original, "--labels", OTHER, "-o", answer).returncode == 0
    assert all(path.is_symlink() for path in (answer / "stages").glob("*/data/*/*.npz"))
    assert command("verify", answer).returncode == 0


def test_a_run_that_has_not_kept_enough_says_what_it_would_take(images: Path, tmp_path: Path, command: Command) -> None:
    original, answer = tmp_path / "original", tmp_path / "answer"
    assert command("run", images, "-o", original, "--labels", FIRST, *SMALL).returncode == 0
    done = command("query", original, "--labels", OTHER, "-o", answer)
    assert done.returncode == 2 and "--set dense.cache=features" in done.stderr
    assert (
        command("run", images, "-o", original, "--labels", FIRST, *SMALL, "--set", "dense.cache=features").returncode
        == 0
    )
    done = command("query", original, "--labels", OTHER, "-o", answer)
    assert done.returncode == 2 and "--set sam.cache=embeddings" in done.stderr
    assert not answer.exists()
    assert command("query", original, "--labels", OTHER, "-o", original).returncode == 2
    assert command("query", original, "--labels", "zebra", "-o", answer).returncode == 2
    done = command("query", original, "--labels", OTHER, "-o", answer, "--set", "refine.method=none")
    assert done.returncode == 0, done.stderr


def test_features_and_logits_agree(few_scenes: Path, finished: Path, tmp_path: Path, command: Command) -> None:
    """Other roundings in between, no other masks."""
    config = (finished / "config.yaml").as_posix()
    workdir = tmp_path / "run"
    done = command("run", few_scenes / "images", "-o", workdir, "-c", config, *KEEPING["prompted"], "--workers", "0")
    assert done.returncode == 0, done.stderr
    theirs, ours = (json.loads((path / "annotations.json").read_text())["annotations"] for path in (finished, workdir))
    overlaps = []
    for one in theirs:
        same = [a for a in ours if (a["image_id"], a["category_id"]) == (one["image_id"], one["category_id"])]
        rivals = [a["segmentation"] for a in same]
        overlaps.append(coco.iou([one["segmentation"]], rivals, [0] * len(rivals)).max() if rivals else 0.0)
    assert len(ours) == len(theirs) and np.mean(overlaps) > 0.98


def test_a_dry_run_says_what_disk_it_takes(images: Path, tmp_path: Path, command: Command) -> None:
    workdir = tmp_path / "run"
    arguments = ("run", images, "-o", workdir, "--labels", FIRST, *SMALL, *KEEPING["prompted"])
    from ovseg_batch.config import load_config
    from ovseg_batch.runs.planning import dry_run
    from ovseg_batch.workdir.store import Workdir

    settings = {"dense.cache": "features", "sam.cache": "embeddings", "labels": FIRST}
    found = dry_run([str(images)], Workdir(workdir), load_config("demo", flags=settings, environment={}))
    assert "GB that are free" in command(*arguments, "--dry-run").stdout and not workdir.exists()
    assert command(*arguments).returncode == 0
    for planned, expected in zip(found.stages, found.disk, strict=True):
        arrays = [p.stat().st_size for p in (workdir / "stages").glob(f"{planned.name}-*/data/*/*.npz")]
        assert expected == pytest.approx(sum(arrays), rel=0.02, abs=1)


def test_a_finished_run_writes_nothing_again(images: Path, tmp_path: Path, command: Command) -> None:
    workdir = tmp_path / "run"
    arguments = ("run", images, "-o", workdir, "--labels", FIRST, *SMALL, "--set", "refine.method=none")
    first = command(*arguments)
    stood = (workdir / "annotations.json").stat().st_mtime_ns
    again = command(*arguments)
    assert again.stdout == first.stdout and (workdir / "annotations.json").stat().st_mtime_ns == stood
    (workdir / "annotations.json").unlink()
    assert command(*arguments).stdout == first.stdout and (workdir / "annotations.json").exists()


def test_outputs_of_before_are_not_taken_for_those_of_now(images: Path, tmp_path: Path, command: Command) -> None:
    """A run that recomputes a shard and dies before its outputs are written must write them the next time."""
    workdir = tmp_path / "run"
    arguments = ("run", images, "-o", workdir, "--labels", FIRST, *SMALL, "--set", "refine.method=none")
    assert command(*arguments).returncode == 0
    whole = (workdir / "annotations.json").read_bytes()
    next((workdir / "stages").glob("refine-*/commits/*/000000.json")).unlink()
    assert command(*arguments, OVSEG_FAILPOINTS="export.rename+=EIO").returncode == 1
    (workdir / "annotations.json").write_bytes(b" " * len(whole))  # of the size it had
    assert command(*arguments).returncode == 0
    assert (workdir / "annotations.json").read_bytes() == whole


# ---- the memory bank


def test_a_bank_is_built_and_used(images: Path, tmp_path: Path, command: Command) -> None:
    first, bank = tmp_path / "first", tmp_path / "bank.parquet"
    kept = KEEPING["prompted"]
    arguments = ("run", images, "-o", first, "--labels", FIRST, "--set", "background=none", *SMALL, *kept)
    assert command(*arguments).returncode == 0
    done = command("bank", "build", first, "-o", bank)
    assert done.returncode == 0, done.stderr
    found = read_bank(bank)
    masks = json.loads((first / "annotations.json").read_text())["annotations"]
    assert len(found.features) == len(masks) and len(set(found.images.tolist())) == 6
    assert np.allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-3)
    ignored, applied = tmp_path / "ignored", tmp_path / "applied"
    arguments = ("bank", "use", first, "--bank", bank, "-o")
    assert command(*arguments, ignored, "--set", "refine.bank_weight=0").returncode == 0
    done = command(*arguments, applied, "--set", "refine.bank_weight=1", "--set", "refine.bank_neighbours=3")
    assert done.returncode == 0, done.stderr
    outlines = [
        [a["segmentation"]["counts"] for a in json.loads((w / "annotations.json").read_text())["annotations"]]
        for w in (first, applied)
    ]
    assert outlines[0] == outlines[1]  # names may change, masks do not
    small = tmp_path / "small.parquet"
    assert command("bank", "build", first, "-o", small, "--limit", len(masks) // 2).returncode == 0
    assert 0 < len(read_bank(small).features) < len(masks)
    [record] = (first / "stages").glob("dense-*/stage.json")
    record.write_text("[]")
    done = command("bank", "build", first, "-o", bank)
    assert done.returncode == 1 and f"{record} is damaged. Delete it" in done.stderr


def test_a_bank_of_other_features_is_refused(images: Path, tmp_path: Path, command: Command) -> None:
    original, other, bank = tmp_path / "original", tmp_path / "other", tmp_path / "bank.parquet"
    keep = ("--set", "dense.cache=features", "--set", "refine.method=none")
    assert command("run", images, "-o", original, "--labels", FIRST, *SMALL, *keep).returncode == 0
    done = command("bank", "use", original, "--bank", bank, "-o", tmp_path / "answer")
    assert done.returncode == 2 and "bank build" in done.stderr
    more = ("--set", "clip.model=demo-image")
    assert command("run", images, "-o", other, "--labels", FIRST, *SMALL, *keep, *more).returncode == 0
    assert command("bank", "build", other, "-o", bank).returncode == 0
    done = command("bank", "use", original, "--bank", bank, "-o", tmp_path / "answer")
    assert done.returncode == 2 and "another CLIP" in done.stderr
    nothing = tmp_path / "nothing"
    high = ("--set", "presence.margin=100")
    assert command("run", images, "-o", nothing, "--labels", "car", *SMALL, *keep, *high).returncode == 0
    done = command("bank", "build", nothing, "-o", bank)
    assert done.returncode == 2 and "no masks" in done.stderr
    plain = tmp_path / "plain"
    assert command("run", images, "-o", plain, "--labels", FIRST, *SMALL).returncode == 0
    done = command("bank", "build", plain, "-o", bank)
    assert done.returncode == 2 and "dense.cache=features" in done.stderr


def test_a_file_that_is_no_bank_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bank.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UsageError, match="no memory bank"):
        read_bank(tmp_path / "bank.parquet")


def test_a_region_s_feature_is_the_mean_of_its_patches() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 2, 2, 5)).astype(np.float32)
    boxes = np.array([[0, 0, 8, 8], [0, 4, 8, 12]])
    owner = np.zeros((8, 12), np.int32)
    owner[:4, :4] = 1  # one patch of the first window
    owner[4:, 4:8] = 2  # a patch of both
    found = region_features(features, boxes, owner, 3)
    for row, mean in ((0, features[0, 0, 0]), (1, features[0, 1, 1] + features[1, 1, 0])):
        assert np.allclose(found[row], mean / np.linalg.norm(mean), atol=1e-6)
    assert not found[2].any()


def test_an_image_s_own_regions_are_not_used() -> None:
    of_image = np.array([7, 8, 7, 9])
    near = nearest_others(np.array([[0, 2, 1, 3], [2, 0, -1, -1]]), of_image, 7, 2)
    assert near.tolist() == [[1, 3], [-1, -1]]
    own = np.array([[0.6, 0.4], [0.5, 0.5]])
    applied = [np.array([[0.0, 1.0], [0.2, 0.8]]), np.zeros((0, 2))]
    assert np.allclose(mixed_scores(own, applied, 0.5), [[0.35, 0.65], [0.5, 0.5]])
    assert np.allclose(mixed_scores(own, applied, 0.0), own)
