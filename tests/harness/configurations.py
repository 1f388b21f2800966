"""Settings of the methods that the harnesses run. Where no model is embedded, one is tiny and random.

Each has options of `ovseg-batch run` beside `-c demo`. Masks of random models mean nothing, but they have to be the
same after every disturbance.
"""

from __future__ import annotations

from pathlib import Path

from ovseg_batch.config import load_config
from ovseg_batch.stages.registry import stage_names
from tests.support.tiny_owl import save_tiny_owl
from tests.support.tiny_sam3 import save_tiny_sam3
from tests.support.tiny_tipsv2 import save_tiny_tipsv2
from tests.support.tiny_vitmatte import save_tiny_vitmatte

#: setting → the folder of its model, with a prefix
MODELS = {
    "clip.model": "local-dir:{}/tipsv2",
    "owl.model": "local-dir:{}/owl",
    "sam3.model": "local-dir:{}/sam3",
    "edit.alpha.model": "{}/matte",
}
SAM3 = {"method": "sam3", "sam3.cache": "embeddings", "sam3.nms": "1", "sam3.contained": "1", "sam3.model": ""}
MATTE = {"edit.alpha.model": "", "edit.alpha.band": "8"}
TIPSV2 = {
    **{"clip.model": "", "dense.attention": "vanilla", "dense.short_side": "150", "dense.templates": "simple4"},
    "background": "none",
}
#: name → settings; the value of a key of `MODELS` is filled in
CONFIGURATIONS: dict[str, dict[str, str]] = {
    "prompted": {},
    "matte": MATTE,
    "detect": {"method": "detect", "owl.model": "", "detect.boxes": "12"},
    "proposals": {"method": "proposals", "propose.points_per_side": "6"},
    "sam3": SAM3,
    # things of SAM 3, stuff of a TIPSv2, and an edit with a ViTMatte
    "hybrid": {**SAM3, **TIPSV2, **MATTE, "method": "hybrid", "merge.things": "sam3", "merge.agreement": "true"},
}
EDIT = {"edit.mode": "cutout"}  # as `Job` runs them


def save_models(root: Path) -> None:
    """Write the models of `MODELS` into a folder."""
    root.mkdir(exist_ok=True)
    save_tiny_owl(root / "owl")
    save_tiny_sam3(root / "sam3")
    save_tiny_tipsv2(root / "tipsv2", side=98)
    save_tiny_vitmatte(root / "matte")


def options(name: str, models: Path) -> tuple[str, ...]:
    """Return the options of a configuration, with models of the folder that `save_models` wrote."""
    settings = CONFIGURATIONS[name]
    filled = {key: MODELS[key].format(models) if key in MODELS else value for key, value in settings.items()}
    return tuple(part for key, value in filled.items() for part in ("--set", f"{key}={value}"))


def stages_of(name: str) -> tuple[str, ...]:
    """Return the stages of a configuration with a cut-out."""
    given = {key: value for key, value in CONFIGURATIONS[name].items() if key not in MODELS}
    flags = [f"{key}={value}" for key, value in {**given, **EDIT}.items()]
    return stage_names(load_config("demo", flags, environment={}))
