"""Edits by a generator: its requests, their order, and how its pictures are judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate import edits as judged
from ovseg_batch.io.pictures import Encoding, Picture
from ovseg_batch.models.diffusion import Inpainter, Request, seed_of
from ovseg_batch.models.pipelines import resolve_pipeline
from ovseg_batch.models.zoo import resolve_inpainting
from ovseg_batch.stages.edit import stage as edit_stage
from ovseg_batch.stages.edit.plan import InpaintParameters
from ovseg_batch.stages.edit.stage import EditStage
from ovseg_batch.stages.registry import resolve
from ovseg_batch.types import ImageRow
from ovseg_batch.workdir.store import Workdir
from tests.conftest import REMOVE, THINGS, Command, run_arguments
from tests.harness.image_variants import GivenMasks, disc, edited, settings

Array = np.ndarray[Any, Any]


class Spy(Inpainter):
    """A loaded pipeline that records its requests."""

    requests: list[list[Request]]

    def paint(self, requests: Any, steps: int, guidance: float, strength: float) -> list[Array | None]:
        self.requests.append(list(requests))
        return [
            np.zeros((*r.image.shape[:2], 3), np.float32) + 0.5 if "bad" not in r.prompt else None for r in requests
        ]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    one = Spy.__new__(Spy)
    one.requests = []
    monkeypatch.setattr(Inpainter, "load", lambda *args: one)
    yield one


def test_prompts_come_from_the_row_the_label_or_the_run(variants: dict[str, Path], spy: Spy) -> None:
    config = settings("replace", "edit.prompt=a {label} of gold", "edit.prompts={sky: night}", "inpaint.batch_size=3")
    stage = EditStage(resolve(config))
    stage.setup("cpu")
    masks = [[("cat", disc(240, 320)), ("sky", disc(240, 320, 0.1, 0.1, 0.05))]] * 3
    rows = [ImageRow(k, f"k{k}", f"{k}.png", str(variants["grey.png"])) for k in range(3)]
    rows[1].extra["edit_prompt"] = "a bad thing"
    rows[2].extra["seed"] = 7
    upstream: dict[str, Any] = {"refine": GivenMasks(masks)}
    results = sorted(stage.process(rows, upstream), key=lambda r: r.row)
    assert results[0].values["prompts"] == ["a cat of gold", "night"]
    assert (results[1].code, "safety checker" in results[1].message) == ("blocked", True)
    assert all(len(batch) == 3 for batch in spy.requests)  # always full
    assert spy.requests[0][2].seed == seed_of("k2", 7, 1) != seed_of("k2", 0, 1)


def test_steps_and_guidance_are_the_models_own_unless_set() -> None:
    spec = resolve_inpainting("demo")
    assert InpaintParameters.of(settings("remove", "edit.drop=cat"), spec) == InpaintParameters(96, *spec.removing, 1.0)
    assert InpaintParameters.of(settings("style", "edit.prompt=x"), spec) == InpaintParameters(96, *spec.usual, 0.6)
    overrides = ("inpaint.steps=3", "inpaint.guidance=0", "inpaint.size=64", "inpaint.strength=0.5")
    assert InpaintParameters.of(settings("style", "edit.prompt=x", *overrides), spec) == InpaintParameters(
        64, 3, 0.0, 0.5
    )
    usual, named = (
        EditStage(resolve(settings("remove", "edit.drop=cat", *sets))).inputs()
        for sets in ((), (f"inpaint.steps={spec.removing.steps}",))
    )
    assert usual == named  # one stage folder for one picture


def test_what_goes_as_well_is_nothing_to_go_by(variants: dict[str, Path], spy: Spy) -> None:
    """Two people side by side: the first is removed with the second hidden, but only the first's place is filled."""
    left, right = disc(240, 320, 0.5, 0.4, 0.12), disc(240, 320, 0.5, 0.6, 0.12)
    [result] = edited(settings("remove", "edit.drop=cat"), [variants["grey.png"]], [[("cat", left), ("cat", right)]])
    first, second = (batch[0].mask.mean() for batch in spy.requests)
    assert first > 1.2 * second  # alone they are alike
    assert result.ok


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With more, a batch is cut up among them, and a picture's place in it shows in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_demo_pipeline_gives_the_same_bits_in_any_full_batch() -> None:
    """A row's picture depends on its own seed, whatever its neighbours are; the pipeline as diffusers runs it."""
    loaded = Inpainter.load(resolve_inpainting("demo"), torch.device("cpu"), "fp32")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (96, 96, 3)).astype(np.uint8) for _ in range(3)]
    requests = [Request(image, disc(96, 96), "a cat", "", k) for k, image in enumerate(images)]
    first, second, third = loaded.paint(requests, 2, 2.0, 1.0)
    turned = loaded.paint([requests[2], requests[0], requests[0]], 2, 2.0, 1.0)
    assert first is not None and second is not None and third is not None and first.shape == (96, 96, 3)
    for one, other in zip(turned, (third, first, first), strict=True):
        assert one is not None
        assert np.array_equal(one, other)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("mode", ["cutout", "erase", "remove"])
@pytest.mark.parametrize("found", [True, False])
def test_what_an_encoder_refuses_costs_its_row(
    mode: str, found: bool, variants: dict[str, Path], spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(picture: Picture, encoding: Encoding) -> bytes:
        raise OSError("encoder error -8 when writing image file")

    monkeypatch.setattr(edit_stage, "encode_picture", refuse)
    masks = [[("cat" if found else "sky", disc(240, 320))]] * 2
    config = settings(mode, "edit.keep=cat" if mode == "cutout" else "edit.drop=cat", "edit.on_empty=copy")
    results = edited(config, [variants["grey.png"]] * 2, masks)
    assert [(result.code, "encoder error" in result.message) for result in results] == [("internal", True)] * 2


def test_a_checkpoint_that_is_not_for_inpainting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for kind, channels in (
        ("StableDiffusionPipeline", 4),
        ("StableDiffusionInpaintPipeline", 4),
        ("AudioLDMPipeline", 9),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        (tmp_path / "unet" / "config.json").write_text(json.dumps({"in_channels": channels}))
        with pytest.raises(UsageError, match="not for inpainting"):
            resolve_pipeline(str(tmp_path), None)
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(UsageError, match="is not a diffusers pipeline"):
        resolve_pipeline(str(tmp_path), None)


def test_paintings_are_judged_by_eval(
    few_scenes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Inception, whose features tests/whole/test_parity.py holds against pytorch-fid's."""

    class MeanColours:
        def __init__(self, *_: object) -> None: ...

        def features(self, images: Array) -> Array:
            return np.asarray(images.mean(axis=(1, 2)))

    monkeypatch.setattr(judged, "Inception", MeanColours)
    monkeypatch.setattr(judged, "inception_weights", lambda: Path("weights"))
    workdir = tmp_path / "run"
    assert command(*run_arguments(few_scenes / "images", workdir, *REMOVE)).returncode == 0
    found = judged.edit_figures(Workdir(workdir), few_scenes)
    assert set(found) == {"PSNR", "SSIM", "pictures", "Fréchet distance (CLIP)", "FID"}
    assert found["PSNR"] > 12 and 0 < found["SSIM"] < 1 and found["FID"] > 0
    words = ("--edit", "replace", "--drop", THINGS, "--set", "edit.prompt=a cat", "--set", "inpaint.steps=1")
    assert command(*run_arguments(few_scenes / "images", workdir, *words)).returncode == 0
    found = judged.edit_figures(Workdir(workdir), few_scenes)
    assert {"named before", "named as asked", "CLIP score", "FID"} < set(found)
    assert found["named before"] > 0.6  # the pictures as they were
