"""Models that settings need: those that the stages load, and no others. Warnings name only these."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import ovseg_batch
from ovseg_batch.config import load_config, presets
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.diffusion import Inpainter
from ovseg_batch.models.sam import Sam
from ovseg_batch.runs.cautions import cautions
from ovseg_batch.runs.needed_models import needed_models
from ovseg_batch.runs.planning import embedded_models
from ovseg_batch.settings import Config
from tests.conftest import Command

EMBEDDED = {"clip.model": "demo", "sam.model": "demo", "inpaint.model": "demo"}
LOADERS: dict[str, Any] = {"clip": DenseClip, "sam": Sam, "inpaint": Inpainter}
DEMO = ("--set", "clip.model=demo", "--set", "sam.model=demo", "--set", "background=none")
BARE = {"background": "none", "run.workers": 0, "refine.method": "none"}
CASES: dict[str, dict[str, object]] = {
    "no SAM2": BARE,
    "no SAM2, one pass": {**BARE, "dense.cache": "none"},
    "no SAM2, features": {**BARE, "dense.cache": "features"},
    "kept embeddings without SAM2": {**BARE, "sam.cache": "embeddings"},
    "SAM2": {**BARE, "refine.method": "prompted"},
    "an edit without a generator": {**BARE, "edit.mode": "cutout", "edit.keep": ["sky"]},
    "a generated edit": {**BARE, "edit.mode": "remove", "edit.keep": ["sky"]},
}


def config_of(settings: dict[str, object], preset: str | None = None) -> Config:
    flags = {"labels": "sky; cat", **EMBEDDED, **settings}
    return load_config(presets()[preset] if preset else None, flags=flags, environment={})


@pytest.mark.parametrize("name", CASES)
def test_needed_models_are_those_that_a_run_loads(
    name: str, few_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = set()
    for kind, owner in LOADERS.items():
        original = owner.load

        def load(*arguments: object, kind: str = kind, original: object = original, **named: object) -> object:
            loaded.add(kind)
            return original(*arguments, **named)  # type: ignore[operator]

        monkeypatch.setattr(owner, "load", load)
    image = min((few_scenes / "images").iterdir())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run = ovseg_batch.run(image, "sky; cat", tmp_path / "run", settings={**EMBEDDED, **CASES[name]}, progress=False)
    expected = [f"{kind}.model" for kind in LOADERS if kind in loaded]
    assert embedded_models(config_of(CASES[name])) == expected
    assert run.to_coco()["info"]["embedded_models"] == expected
    [note] = [str(one.message) for one in found if "embedded demo weights" in str(one.message)]
    assert note.startswith(f"{' and '.join(expected)}: ")


@pytest.mark.parametrize("preset", ["sclip", "naclip", "clearclip", "maskclip"])
def test_methods_without_sam_do_not_warn_of_it(preset: str, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    assert [one.kind for one in needed_models(config_of({}, preset))] == ["clip"]
    for dry in (("--dry-run",), ()):
        options = ("-c", preset, "--labels", "sky; cat", *DEMO, "--workers", "0")
        image = min((few_scenes / "images").iterdir())
        done = command("run", image, "-o", tmp_path / "run", *options, *dry)
        assert done.returncode == 0 and "clip.model: embedded" in done.stdout + done.stderr
        assert "sam.model" not in done.stdout + done.stderr
    assert "sam.model: " not in command("report", tmp_path / "run").stdout
    assert "clip.model: embedded" in (page := (tmp_path / "run" / "report" / "index.html").read_text())
    assert "sam.model: embedded" not in page and "and sam.model" not in page


def test_own_weights_of_an_embedded_architecture_are_no_demo_weights() -> None:
    assert embedded_models(config_of({"clip.weights": "mine.safetensors"})) == ["sam.model"]
    assert embedded_models(config_of({"sam.weights": "mine.pt", "clip.model": "openai-b16"})) == []


@pytest.mark.parametrize(
    ("threshold", "warned"), [(0.0, True), (0.5, True), (0.51, False)], ids=["none", "never below", "some below"]
)
def test_pixels_below_a_threshold_get_no_label(threshold: float, warned: bool) -> None:
    settings = {"background": "none", "dense.prob_threshold": threshold}
    assert any("every pixel gets" in one for one in cautions(config_of(settings))) == warned


def test_licences_are_those_of_the_weights() -> None:
    models = {"clip.model": "metaclip-b16", "sam.model": "sam2.1-large", "inpaint.model": "flux-fill"}
    found = needed_models(config_of({**models, "edit.mode": "remove"}, "prompted"))
    assert [one.licence for one in found] == ["CC-BY-NC-4.0", "Apache-2.0", "FLUX.1 [dev] Non-Commercial"]
    own = needed_models(config_of({"clip.model": "openai-b16", "clip.weights": "mine.pt"}))
    assert own[0].licence == "see the weights' own card"
