"""`edit.alpha.model`: a matting network computes the soft edge of what an edit keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ovseg_batch.errors import DeviceLost, UsageError
from ovseg_batch.methods import matte_tiles
from ovseg_batch.methods.matting import trimap
from ovseg_batch.models import zoo
from ovseg_batch.models.vitmatte import VitMatte
from ovseg_batch.runs.needed_models import needed_models
from ovseg_batch.stages.edit.matting import Matting
from ovseg_batch.stages.registry import make_plan, resolve, stage_names
from ovseg_batch.types.arrays import Numbers
from tests.conftest import THINGS, Command, run_arguments
from tests.harness.image_variants import decoded, disc, edited, pixels_of, settings
from tests.support.tiny_vitmatte import save_tiny_vitmatte

Array = np.ndarray[Any, Any]
CUTOUT = ("edit.keep=cat", "edit.alpha.band=9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vitmatte(tmp_path_factory.mktemp("matte"))


@pytest.fixture(scope="module")
def model(folder: Path) -> VitMatte:
    return VitMatte.load(zoo.resolve("matte", str(folder)), torch.device("cpu"), "fp32")


def only_file(results: list[Any]) -> Array:
    [result] = results
    assert result.ok, result.message
    [content] = result.files.values()
    return pixels_of(content)


@pytest.mark.parametrize("name", ["plain.png", "deep.png"])
def test_alpha_in_the_band_is_that_of_the_network(
    name: str, variants: dict[str, Path], folder: Path, model: VitMatte
) -> None:
    """An untiled picture: every pixel of the band, and no other, has the network's alpha."""
    picture = decoded(variants[name]).pixels
    mask = disc(picture.shape[0], picture.shape[1])
    eight = picture if picture.dtype == np.uint8 else (picture >> 8).astype(np.uint8)
    config = settings("cutout", *CUTOUT, f"edit.alpha.model={folder}")
    whole = only_file(edited(config, [variants[name]], [[("cat", mask)]]))
    known, top = trimap(mask, 9), np.iinfo(picture.dtype).max
    band, expected = known == matte_tiles.UNKNOWN, model.alpha(np.ascontiguousarray(eight), known)
    assert np.abs(whole[..., 3][band].astype(np.float64) / top - expected[band]).max() <= 0.5 / top + 1e-6
    assert np.array_equal(whole[..., 3][~band], (mask * top)[~band])
    assert np.array_equal(whole[..., :3][mask & ~band], picture[mask & ~band])
    grey = settings("mask", *CUTOUT, f"edit.alpha.model={folder}")
    assert np.array_equal(
        only_file(edited(grey, [variants[name]], [[("cat", mask)]])),
        whole[..., 3] if picture.dtype == np.uint8 else (whole[..., 3] >> 8).astype(np.uint8),
    )


def test_a_tiled_picture_equals_one_call_as_far_as_the_network_is_local(
    model: VitMatte, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The convolutions look at less than the margin. The backbone sees the whole tile, so it is silenced here."""
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (1100, 1400, 3)).astype(np.uint8), disc(1100, 1400, radius=0.4)
    known = trimap(mask, 20)
    tiles = matte_tiles.tiles_of(known)
    assert len(tiles) == 4
    local = VitMatte.load(zoo.resolve("matte", str(folder)), torch.device("cpu"), "fp32")
    spread = local.model.backbone.forward_with_filtered_kwargs

    def silent(pixels: Any) -> Any:
        found = spread(pixels)
        found.feature_maps = tuple(torch.zeros_like(one) for one in found.feature_maps)
        return found

    monkeypatch.setattr(local.model.backbone, "forward_with_filtered_kwargs", silent)
    unknown = known == matte_tiles.UNKNOWN
    apart = np.abs(Matting(local)(image, known) - local.alpha(image, known))[unknown]
    assert apart.max() < 1e-5
    apart = np.abs(Matting(model)(image, known) - model.alpha(image, known))[unknown]
    assert apart.max() > 1e-5  # the whole network sees the tile's place: docs/editing.md has the measurement


class Faulty(VitMatte):
    """A network that raises for the tiles that a function chooses."""

    def __init__(self, model: VitMatte, fault: Callable[[int], Exception | None]) -> None:
        self._inner, self._fault, self.calls = model, fault, 0

    def alpha(self, image: Any, known: Any) -> Numbers:
        self.calls += 1
        error = self._fault(self.calls)
        if error is not None:
            raise error
        return self._inner.alpha(image, known)


def run_with(
    fault: Callable[[int], Exception | None],
    folder: Path,
    model: VitMatte,
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> list[Any]:
    monkeypatch.setattr(VitMatte, "load", lambda *args: Faulty(model, fault))
    config = settings("cutout", *CUTOUT, f"edit.alpha.model={folder}", "run.decode_threads=1")
    return edited(config, files, [[("cat", disc(240, 320))]] * len(files))


def test_memory_that_runs_out_costs_a_retry_or_the_row(
    variants: dict[str, Path], folder: Path, model: VitMatte, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, files = torch.cuda.OutOfMemoryError("CUDA out of memory"), [variants["grey.png"]] * 2
    once = run_with(lambda call: short if call == 1 else None, folder, model, files, monkeypatch)
    assert [result.ok for result in once] == [True, True]
    twice = run_with(lambda call: short if call <= 2 else None, folder, model, files, monkeypatch)
    assert [(result.ok, result.code) for result in twice] == [(False, "out_of_memory"), (True, None)]
    bad = run_with(lambda call: ValueError("bad") if call == 1 else None, folder, model, files, monkeypatch)
    assert [(result.ok, result.code) for result in bad] == [(False, "model"), (True, None)]
    with pytest.raises(DeviceLost):
        run_with(lambda call: DeviceLost("gone"), folder, model, files, monkeypatch)


def test_the_model_decides_the_edit_alone(folder: Path, tmp_path: Path) -> None:
    def inputs(*overrides: str) -> dict[str, Any]:
        config = settings("cutout", *CUTOUT, *overrides)
        return {name: make_plan(resolve(config), name).inputs() for name in stage_names(config)}

    without, with_model = inputs(), inputs(f"edit.alpha.model={folder}")
    assert {name for name in without if without[name] != with_model[name]} == {"edit"}
    assert "model" not in without["edit"]["edit"]["alpha"]  # as before the setting existed
    other = tmp_path / "other"
    save_tiny_vitmatte(other)
    save_file({"x": torch.zeros(1)}, other / "model.safetensors")
    assert inputs(f"edit.alpha.model={other}")["edit"] != with_model["edit"]


@pytest.mark.parametrize(
    ("mode", "sets", "needed"),
    [
        ("cutout", (), True),
        ("mask", ("edit.drop=cat",), True),
        ("fill", (), True),
        ("fill", ("edit.drop=cat",), False),
        ("cutout", ("edit.alpha.soft=false",), False),
        ("crop", (), False),
        ("erase", ("edit.drop=cat",), False),
    ],
)
def test_the_model_is_needed_where_an_edge_is_soft(
    mode: str, sets: tuple[str, ...], needed: bool, folder: Path
) -> None:
    config = settings(mode, *sets, f"edit.alpha.model={folder}")
    assert ("matte" in [one.kind for one in needed_models(config)]) is needed
    plan = make_plan(resolve(config), "edit")
    assert plan.resources.accelerator is needed and plan.resources.shared
    assert ("matte" in plan.inputs()) is needed


def test_a_wrong_name_is_refused_when_the_run_is_planned() -> None:
    config = settings("cutout", "edit.alpha.model=vitmate-small")
    with pytest.raises(UsageError, match="Did you mean 'vitmatte-small'"):
        make_plan(resolve(config), "edit")


def test_a_command_resumes_and_queries_nothing_again(
    few_scenes: Path, tmp_path: Path, folder: Path, command: Command
) -> None:
    """A run with the network, then another network: the masks stay, and the edit is computed again."""
    words = ("--edit", "cutout", "--keep", THINGS, "--set", f"edit.alpha.model={folder}")
    assert command(*run_arguments(few_scenes / "images", tmp_path / "run", *words)).returncode == 0
    stages = {path.name for path in (tmp_path / "run" / "stages").iterdir()}
    files = sorted((tmp_path / "run" / "edited").rglob("*.png"))
    assert files and Image.open(files[0]).mode == "RGBA"
    again = ("--edit", "cutout", "--keep", THINGS)
    assert command(*run_arguments(few_scenes / "images", tmp_path / "run", *again)).returncode == 0
    new = {path.name for path in (tmp_path / "run" / "stages").iterdir()} - stages
    assert {name.partition("-")[0] for name in new} == {"edit"}
