"""Dense maps of a TIPSv2, from the plan to the masks. The TIPSv2 is tiny and random, so its masks mean nothing."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ovseg_batch
from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.models.tipsv2 import Tipsv2
from ovseg_batch.stages.registry import make_plan, resolve
from ovseg_batch.stages.text import text_features
from tests.conftest import Command, data_files
from tests.harness.job import Running
from tests.support.tiny_tipsv2 import save_tiny_tipsv2

LABELS = ", ".join(scenes.CLASSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tipsv2(tmp_path_factory.mktemp("tipsv2"), side=98)


def settings_of(folder: Path) -> dict[str, Any]:
    return {
        **{"clip.model": f"local-dir:{folder}", "sam.model": "demo", "dense.short_side": 150},
        **{"dense.templates": "simple4", "background": "none", "run.workers": 0, "manifest.shard_rows": 2},
    }


def arguments(folder: Path, images: Path, workdir: Path, *flags: str, labels: str = LABELS) -> tuple[object, ...]:
    options = (f"--set={key}={json.dumps(value)}" for key, value in settings_of(folder).items())
    return ("run", images, "-o", workdir, "-c", "tipsv2", "--labels", labels, *options, *flags)


def plan_of(folder: Path, more: dict[str, Any] | None = None, name: str = "dense") -> Any:
    flags = {"labels": "sky; tree", **settings_of(folder), **(more or {})}
    return make_plan(resolve(load_config("tipsv2", flags=flags, environment={})), name)


@pytest.fixture(scope="module")
def finished(folder: Path, few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """An undisturbed run over the six scenes, in three shards."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = command(*arguments(folder, few_scenes / "images", workdir))
    assert done.returncode == 0, done.stderr
    return workdir


def masks(workdir: Path) -> Any:
    return json.loads((workdir / "annotations.json").read_text())["annotations"]


def test_a_run_writes_masks_and_does_nothing_again(
    folder: Path, few_scenes: Path, finished: Path, command: Command
) -> None:
    assert masks(finished)
    before = data_files(finished)
    again = command(*arguments(folder, few_scenes / "images", finished))
    assert again.returncode == 0 and "everything was done before" in again.stderr
    assert data_files(finished) == before
    assert command("verify", finished).returncode == 0


def test_the_stored_similarities_are_those_of_the_model(folder: Path, few_scenes: Path, finished: Path) -> None:
    """Windows are cut as for a CLIP, with patches of 14 pixels."""
    plan = plan_of(folder)
    assert (plan._window, plan._stride, plan._patch) == (98, 49, 14)
    [data] = (finished / "stages").glob("dense-*/data/000/000000.npz")
    with np.load(data) as stored:
        name = next(name for name in stored.files if "logits" in name)
        kept = stored[name]
    assert kept.shape[1:] == (len(scenes.CLASSES), 7, 7)
    assert np.abs(kept).max() <= 1 and kept.std() > 0.01


def test_a_killed_run_ends_like_an_undisturbed_one(
    folder: Path,
    few_scenes: Path,
    finished: Path,
    tmp_path: Path,
    command: Command,
    start: Callable[..., Running],
) -> None:
    run = arguments(folder, few_scenes / "images", tmp_path / "run")
    assert start(*run, OVSEG_FAILPOINTS="dense.rename:5").wait().code == -signal.SIGKILL
    resumed = command(*run)
    assert resumed.returncode == 0 and "dense: computing shards 1-2" in resumed.stderr
    assert data_files(tmp_path / "run") == data_files(finished)


def test_a_query_gives_the_bytes_of_a_run(folder: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    """From kept features, without images and without the image towers."""
    images = Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))
    flags = ("--set=dense.cache=features", "--set=sam.cache=embeddings")
    for name, labels in (("first", "sky; car"), ("full", "tree; house: house, building")):
        done = command(*arguments(folder, images, tmp_path / name, *flags, labels=labels))
        assert done.returncode == 0, done.stderr
    shutil.rmtree(images)
    done = command("query", tmp_path / "first", "--labels", "tree; house: house, building", "-o", tmp_path / "answer")
    assert done.returncode == 0, done.stderr
    answered, full = ((tmp_path / name / "annotations.json").read_bytes() for name in ("answer", "full"))
    assert answered == full and masks(tmp_path / "full")


def test_one_pass_without_stored_maps(folder: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    done = command(*arguments(folder, few_scenes / "images", tmp_path / "run", "--set=dense.cache=none"))
    assert done.returncode == 0, done.stderr
    assert masks(tmp_path / "run")


def test_a_label_alone_has_the_features_that_it_has_beside_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = plan_of(folder)._spec
    encoder, templates = Tipsv2.load(spec, torch.device("cpu"), "fp32"), ("a photo of a {}.", "the {} in a scene.")
    together: list[torch.Tensor] = []
    alone: list[torch.Tensor] = []
    for found, groups in ((together, [["sky", "car", "tree"]]), (alone, [["sky"], ["car"], ["tree"]])):
        for group in groups:
            monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / f"{len(found)} {group}"))
            found.extend(text_features(encoder, spec, group, templates))
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


ATTENTIONS = [name for name in (*VARIANTS, "corrclip", "corrclip-dino", "trident") if name != "vanilla"]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_another_attention_is_refused(attention: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=rf"dense.attention: {attention} computes with the blocks of a CLIP.*vanilla"):
        plan_of(folder, {"dense.attention": attention})


def test_settings_that_need_a_clip_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"dense.layers.*its last block"):
        plan_of(folder, {"dense.layers": [0.5, 1.0]})
    with pytest.raises(UsageError, match=r"dense.key_smoothing"):
        plan_of(folder, {"dense.key_smoothing": 0.5})
    for scorer in ("crops", "mask-tokens"):
        with pytest.raises(UsageError, match=r"method: proposals .* Name a CLIP"):
            plan_of(folder, {"method": "proposals", "classify.scorer": scorer}, "embed")


def test_a_refused_run_makes_no_workdir(folder: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    run = arguments(folder, few_scenes / "images", tmp_path / "run", "--set=dense.attention=csa")
    refused = command(*run)
    assert refused.returncode == 2 and "Set dense.attention: vanilla, or use the preset tipsv2." in refused.stderr
    long = command(*arguments(folder, few_scenes / "images", tmp_path / "run", labels="car " * 70))
    assert long.returncode == 2 and "tokens, and local-dir:" in long.stderr and "takes 64" in long.stderr
    assert not (tmp_path / "run").exists()


def test_views_of_itaclip_go_with_it(folder: Path, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    run = arguments(folder, few_scenes / "images", tmp_path / "run", "--set=dense.views=itaclip")
    assert command(*run, "--set=refine.method=none").returncode == 0


def test_python_segments_an_image(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"sam.model: embedded"):
        found = ovseg_batch.segment(
            scenes.render(3).image, "car; sky", config="tipsv2", settings={**settings_of(folder), "clip.weights": None}
        )
    assert {mask.label for mask in found.masks} <= {"car", "sky"}


def test_a_copy_of_the_folder_computes_the_same(
    folder: Path, few_scenes: Path, finished: Path, tmp_path: Path, command: Command
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert command(*arguments(copy, few_scenes / "images", tmp_path / "run")).returncode == 0
    assert masks(tmp_path / "run") == masks(finished)
