"""Settings of the checks: presets and edit modes on the embedded models, and full-size models with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ovseg_batch import scenes
from ovseg_batch.config import load_config, presets
from ovseg_batch.models.zoo import embedded_file, is_embedded
from ovseg_batch.runs.needed_models import needed_models
from ovseg_batch.settings import Config

FULL_CLIP, FULL_SAM, RANDOM = "ViT-B-16-quickgelu", "sam2.1-large", "random:0"

#: Presets are written for photographs. These settings take the embedded models and the labels of rendered scenes.
EMBEDDED: dict[str, Any] = {
    "labels": "dataset:scenes",
    "background": [],
    "clip.weights": None,
    "sam.model": "demo",
    "propose.points_per_side": 8,
    "propose.predicted_iou": 0.6,
    "propose.stability": 0.7,
    "classify.background": [],
    "inpaint.model": "demo",
    "inpaint.steps": 4,
    "run.workers": 0,
}

#: Settings that make a run shorter where its masks need not be good.
QUICK: dict[str, Any] = {"dense.templates": "simple4", "propose.points_per_side": 4, "inpaint.steps": 2}

#: Labels of the scenes that take the part of a preset's own labels.
EDITED: dict[str, Mapping[str, Any]] = {
    "anonymise": {"edit.drop": ["person", "car"]},
    "background-removal": {"edit.keep": list(scenes.THING_NAMES)},
    "remove-people": {"edit.drop": ["person", "cat", "ball"]},
    "replace-sky": {"edit.drop": ["sky"]},
}

THINGS = list(scenes.THING_NAMES)
NEXT_THING = {name: f"a photo of a {THINGS[(k + 1) % len(THINGS)]}" for k, name in enumerate(THINGS)}

#: Every edit mode, on top of the masks of `prompted`.
EDIT_MODES: dict[str, Mapping[str, Any]] = {
    "cutout": {"edit.keep": THINGS},
    "fill": {"edit.keep": THINGS},
    "mask": {"edit.keep": THINGS},
    "crop": {"edit.keep": THINGS},
    "erase": {"edit.drop": THINGS},
    "remove": {"edit.drop": THINGS},
    "replace": {"edit.drop": THINGS, "edit.prompts": NEXT_THING, "edit.shape": "box"},
    "style": {"edit.prompt": "a pencil drawing"},
}


def preset_config(name: str, device: str, precision: str, more: Mapping[str, Any] | None = None) -> Config:
    """Return a preset with the embedded models, on a device in a precision."""
    file = presets()[name]
    preset = load_config(file, environment={})
    settings = {**EMBEDDED, "clip.model": "demo-token" if preset.method == "proposals" else "demo"}
    settings |= EDITED.get(name, {})
    if preset.classify.tuned:
        settings["classify.tuned"] = str(embedded_file("demo/masq.safetensors"))
    return load_config(file, _overrides({**settings, **_placed(device, precision), **(more or {})}), environment={})


def embedded_presets() -> list[str]:
    """Return the presets whose models are all embedded: those without a DINO and without an OWLv2."""
    configs = {name: preset_config(name, "cpu", "fp32") for name in presets()}
    return [n for n, one in configs.items() if all(is_embedded(m.kind, m.model) for m in needed_models(one))]


def edit_config(mode: str, device: str, precision: str, more: Mapping[str, Any]) -> Config:
    """Return an edit mode on the masks of `prompted`, with the embedded models."""
    return preset_config("prompted", device, precision, {"edit.mode": mode, **EDIT_MODES[mode], **more})


def full_size_config(device: str, more: Mapping[str, Any] | None = None, embedded: bool = False) -> Config:
    """Return `prompted` with ViT-B/16 and SAM 2.1 large of random weights, or with the embedded models."""
    if embedded:
        return preset_config("prompted", device, "auto", more)
    settings = {
        "labels": list(scenes.CLASSES),
        "clip.model": FULL_CLIP,
        "clip.weights": RANDOM,
        "sam.model": FULL_SAM,
        "sam.weights": RANDOM,
        "run.workers": 0,
        **_placed(device, "auto"),
    }
    return load_config("demo", _overrides({**settings, **(more or {})}), environment={})


def _placed(device: str, precision: str) -> dict[str, Any]:
    return {"run.device": device, "run.precision": precision}


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
