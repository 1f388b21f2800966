"""Every key of the settings is in a fingerprint, or is declared as one that changes no result."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ovseg_batch.config import load_config
from ovseg_batch.errors import OvsegError
from ovseg_batch.settings import Config
from ovseg_batch.settings.edit_modes import EDIT_MODES
from ovseg_batch.settings.listing import SettingLine, choices, setting_lines
from ovseg_batch.settings.models import InpaintExecution, Sam3Execution
from ovseg_batch.settings.readers import read_settings
from ovseg_batch.settings.running import RunExecution
from ovseg_batch.stages.registry import make_plan, resolve, stage_names

DEMO = {"clip.model": "demo", "sam.model": "demo", "inpaint.model": "demo"}
FULL_SIZE = {
    "clip.model": "openai-b16",
    "clip.weights": "random:0",
    "sam.model": "sam2.1-large",
    "sam.weights": "random:0",
}

SAM3 = {"method": "sam3", "sam3.weights": "random:0"}
HYBRID = {"method": "hybrid", "owl.weights": "random:0", "sam3.weights": "random:0"}

#: settings under which each key is read by some stage
BASES: tuple[dict[str, Any], ...] = (
    {},
    {"labels": [{"name": "sky", "definition": "grass"}, {"name": "tree"}]},
    {"dense.prompt_denoising": 0.1, "refine.pamr": 1},
    {"refine.method": "guided"},
    {"refine.method": "trident"},
    {"sam.cache": "embeddings"},
    {"dense.views": "itaclip"},
    {"dense.cache": "features", "refine.bank": "ONE"},
    {"method": "proposals"},
    {"dense.attention": "corrclip-dino", "dino.weights": "random:0"},
    {
        **{"dense.attention": "trident", "refine.method": "trident-map", "dino.weights": "random:0"},
        **{"sam.model": "sam1-base", "sam.weights": "random:0"},
    },
    {"method": "proposals", "classify.scorer": "mask-tokens"},
    {"method": "detect", "owl.weights": "random:0"},
    SAM3,
    {**SAM3, "sam3.output": "semantic"},
    HYBRID,
    {**HYBRID, "merge.rule": "best"},
    {**SAM3, "sam3.floor": 0.05, "sam3.cache": "embeddings"},
    *({"edit.mode": mode, "edit.prompt": "grass"} for mode in EDIT_MODES),
    {"edit.mode": "fill", "edit.fill.kind": "image", "edit.fill.image": "ONE"},
    FULL_SIZE,
)

#: key → another value, where its type does not give one
OTHER: dict[str, Any] = {
    "background": "none",
    "classify.denoising": 0.5,
    "classify.scales": [1.0, 2.0, 3.0],
    "classify.tuned": "OTHER",
    "classify.weights": [0.4, 0.3, 0.3],
    "clip.model": "openai-l14",
    "clip.precision": "bf16",
    "clip.weights": "random:1",
    "definitions": "DEFINITIONS",
    "dense.attention": "vanilla",
    "dense.layers": [0.5],
    "dense.short_side": 300,
    "dense.templates": "simple4",
    "dense.window": 64,
    "detect.templates": ["{}"],
    "dino.model": "dino-b16",
    "dino.precision": "bf16",
    "dino.weights": "random:1",
    "edit.alpha.model": "TINY_MATTE",
    "edit.drop": ["tree"],
    "edit.fill.colour": "black",
    "edit.fill.colour_below": "black",
    "edit.fill.image": "OTHER",
    "edit.keep": ["tree"],
    "edit.prompts": {"sky": "sea"},
    "inpaint.size": 128,
    "inpaint.strength": 0.5,
    "method": "proposals",
    "owl.model": "owlv2-base",
    "owl.precision": "bf16",
    "owl.weights": "random:1",
    "propose.masks": str(Path(__file__).parent),
    "refine.bank": "OTHER",
    "refine.tile": 256,
    "run.device": "cpu",
    "run.gpus_per_worker": {"dense": 0.5},
    "run.metrics_file": "OTHER",
    "run.precision": "bf16",
    "sam.model": "sam2.1-tiny",
    "sam.precision": "bf16",
    "sam.weights": "random:1",
    "sam3.model": "TINY_SAM3",
    "sam3.precision": "bf16",
    "sam3.size": 336,
    "sam3.tile": 672,
    "sam3.weights": "random:1",
}

#: keys of which no stage reads anything, and what they decide
ELSEWHERE = {
    "about": "nothing: the purpose of a config in words",
    "protocol": "the settings that it brings, where the labels are those of a data set",
    "manifest": "the manifest, whose fingerprint is in that of every stage",
    "inpaint.model": "the pipeline, of which this machine has one",
}

EXECUTION: dict[str, type[BaseModel]] = {"run": RunExecution, "inpaint": InpaintExecution, "sam3": Sam3Execution}
LINES = [one for one in setting_lines() if one.key not in ELSEWHERE and one.key.partition(".")[0] not in ELSEWHERE]


def is_execution(key: str) -> bool:
    """Return whether a key is declared as one that changes no result."""
    section, _, name = key.partition(".")
    return section in EXECUTION and name in EXECUTION[section].model_fields


@pytest.fixture(scope="module")
def inputs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Any]], str]:
    """Return what every stage depends on under some settings, as text; empty where the settings do not go together."""
    folder = tmp_path_factory.mktemp("files")
    files = {name: str(folder / name) for name in ("ONE", "OTHER")}
    for name, path in files.items():
        Path(path).write_bytes(name.encode())
    sizes: dict[str, Any] = {"vision_config": {"backbone_config": {}}, "text_config": {}}
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3", **sizes}))
    files["TINY_SAM3"] = f"local-dir:{folder}"
    matte = folder / "matte"
    matte.mkdir()
    (matte / "config.json").write_text(json.dumps({"model_type": "vitmatte", "backbone_config": {}}))
    (matte / "model.safetensors").write_bytes(b"weights")
    files["TINY_MATTE"] = str(matte)
    files["DEFINITIONS"] = str(folder / "definitions.txt")
    Path(files["DEFINITIONS"]).write_text("sky >= grass\ntree >= grass\n")

    @functools.cache
    def inputs(settings: str) -> str:
        given = {key: files.get(str(value), value) for key, value in json.loads(settings).items()}
        try:
            config = load_config(None, (), {"labels": "sky; tree", **DEMO, **given}, environment={})
            resolved = resolve(config)
            plans = {name: make_plan(resolved, name).inputs() for name in stage_names(config)}
        except OvsegError:
            return ""
        return json.dumps(plans, sort_keys=True)

    return lambda settings: inputs(json.dumps(settings))


@pytest.mark.parametrize("line", [one for one in LINES if "[]" not in one.key], ids=lambda line: line.key)
def test_a_key_is_in_a_fingerprint_or_is_declared_as_execution(
    line: SettingLine, inputs_of: Callable[[Mapping[str, Any]], str]
) -> None:
    changed = {line.key: other_value(line.key)}
    compared = [(inputs_of(base), inputs_of({**base, **changed})) for base in BASES]
    possible = [(before, after) for before, after in compared if before and after]
    assert possible, "no settings allow the other value"
    assert any(before != after for before, after in possible) != is_execution(line.key)


@pytest.mark.parametrize("line", [one for one in LINES if "[]" in one.key], ids=lambda line: line.key)
def test_a_key_of_a_label_is_in_a_fingerprint(line: SettingLine, inputs_of: Callable[[Mapping[str, Any]], str]) -> None:
    name = line.key.removeprefix("labels[].")
    value = {"name": "cloud", "threshold": 0.5, "definition": "grass", "kind": "stuff"}.get(name, ["xylophone"])
    methods = [{**FULL_SIZE, "method": method} for method in ("dense", "proposals")]
    changes = {inputs_of({**one, "labels": [{"name": "sky", name: value}]}) for one in methods}
    same = {inputs_of({**one, "labels": [{"name": "sky"}]}) for one in methods}
    assert (changes != same) != (name == "kind"), "a kind acts on exports alone, and on method: hybrid"


def test_a_kind_decides_which_method_gives_the_masks(inputs_of: Callable[[Mapping[str, Any]], str]) -> None:
    hybrid = {**HYBRID, "labels": [{"name": "sky"}]}
    same, other = ({**hybrid, "labels": [{"name": "sky", "kind": kind}]} for kind in ("stuff", "thing"))
    assert inputs_of(hybrid) == inputs_of(same) != inputs_of(other)


def other_value(key: str) -> Any:
    """Return a valid value of a key that differs from its default."""
    value = operator.attrgetter(key)(Config())
    if key in OTHER:
        return OTHER[key]
    if known := choices(key):
        return next(one for one in known if one != str(value).lower())
    match value:
        case float():
            return value / 2 or 0.5
        case int():
            return value + 1
        case tuple():
            return ["cat"]
        case None:
            return 3
        case _:
            return f"{value}x"


@pytest.mark.parametrize(("method", "lacks"), [("prompted", "same_object"), ("guided", "vote"), ("none", "point")])
def test_a_refine_method_depends_on_the_keys_that_it_reads_alone(method: str, lacks: str) -> None:
    config = load_config(None, (), {"labels": "sky", "refine.method": method}, environment={})
    assert lacks not in read_settings(config, "refine", "refine")
    assert {"method", "min_area", "output"} <= read_settings(config, "refine", "refine").keys()
