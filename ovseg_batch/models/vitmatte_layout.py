"""The architecture of a ViTMatte, by its name or from the config file of a folder. No model library is imported."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.models import presets

FOLDER = "local-dir:"  # prefix of a model in a folder that transformers wrote
CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
#: values of the preprocessing that this package computes; a folder with others is refused
COMPUTED: dict[str, Any] = {
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size_divisor": 32,
    "size_divisibility": 32,
}


@dataclass(frozen=True, slots=True)
class VitMatteLayout:
    """The architecture of a ViTMatte.

    Attributes:
        preset: its name; empty for a folder.
        folder: None for a named model.
        config: arguments of transformers' `VitMatteConfig`.
        config_hash: hash of the config file; empty without a file.
    """

    preset: str
    folder: Path | None
    config: dict[str, Any]
    config_hash: str = ""


def vitmatte_layout(model: str) -> VitMatteLayout:
    """Return the architecture of a ViTMatte.

    Args:
        model: a preset or its hub id; or a folder that transformers wrote, with or without `local-dir:`.

    Raises:
        UsageError: the name is unknown, or the folder holds no ViTMatte.
    """
    name = presets.preset_of_hub("matte", model)
    if name in presets.MATTE:
        return VitMatteLayout(name, None, presets.MATTE_CONFIGS[presets.MATTE[name].architecture])
    folder = Path(model.removeprefix(FOLDER))
    if not (model.startswith(FOLDER) or folder.is_dir()):
        raise UsageError(
            f"edit.alpha.model: there is no ViTMatte {model!r}.{nearest(model, presets.MATTE)} "
            f"Names: {', '.join(presets.MATTE)}; or a folder that transformers has saved."
        )
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        config = dict(json.loads(text))
        kind = config.get("model_type")
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"edit.alpha.model: {folder} has no readable {CONFIG} of a ViTMatte ({error}).") from None
    if kind != "vitmatte":
        raise UsageError(f"edit.alpha.model: {folder} holds a model of type {kind!r}, not a ViTMatte.")
    _check_preprocessing(folder)
    return VitMatteLayout("", folder, config, hashlib.blake2b(text.encode(), digest_size=16).hexdigest())


def _check_preprocessing(folder: Path) -> None:
    """Raise UsageError where the model's own preprocessing differs from that of the published models."""
    file = folder / PREPROCESSING
    if not file.is_file():
        return
    try:
        values = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"edit.alpha.model: {file} cannot be read ({error}).") from None
    for name, value in COMPUTED.items():
        if values.get(name, value) != value:
            raise UsageError(f"edit.alpha.model: {file} has {name}: {values[name]}; only {value} is supported.")
