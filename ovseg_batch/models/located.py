"""Locate the files of models: in folders of checkpoints, in the hub's cache, or where a setting names them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ovseg_batch.errors import OvsegError, UsageError, nearest
from ovseg_batch.models import open_clip_tables
from ovseg_batch.models.hub_cache import cached
from ovseg_batch.models.missing import Missing, MissingModels
from ovseg_batch.models.presets import Kind, Preset
from ovseg_batch.models.spec import FOLDER, RANDOM

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
WEIGHTS = "model.safetensors"  # the weights in a folder that timm or transformers wrote
CONFIG = "config.json"  # the architecture in such a folder
#: kind → what a message calls its weights
NAMES: dict[Kind, str] = {
    "clip": "CLIP weights",
    "sam": "SAM2 weights",
    "dino": "DINO weights",
    "owl": "OWLv2 weights",
    "sam3": "SAM 3 weights",
    "matte": "ViTMatte weights",
}

T = TypeVar("T")


def checkpoint_folders() -> list[Path]:
    """Return the folders that are searched for weights: $OVSEG_CHECKPOINTS, the package's, and its checkout's."""
    package = Path(__file__).resolve().parent.parent
    named = os.environ.get("OVSEG_CHECKPOINTS")
    return ([Path(named)] if named else []) + [package / "checkpoints", package.parent / "checkpoints"]


def embedded_file(name: str) -> Path:
    """Return a file under checkpoints/. Raises OvsegError where the installation lacks it."""
    for folder in checkpoint_folders():
        if (folder / name).is_file():
            return folder / name
    raise OvsegError(
        f"The embedded model's file {name} is not in {', '.join(map(str, checkpoint_folders()))}. "
        "Install ovseg_batch again, or train it with scripts/training/train_demo.py."
    )


def preset_weights(name: str, preset: Preset, file: str, weights: str | None, what: str = "") -> str:
    """Return the weights file of a named model, or `random:SEED`.

    Args:
        name: argument of `models fetch`.
        file: name of the weights file in a checkpoint folder.
        weights: of the settings. Empty or None: those of the preset.
        what: what a message calls the weights. Empty: `NAMES`.

    Raises:
        UsageError: the file of the settings does not exist.
        MissingModels: the weights of the preset are not on this machine.
    """
    if weights:
        return given_weights(weights)
    return local_file(file) or cached_file(preset.hub, preset.file) or missing(name, file, preset, what)


def folder_weights(model: str, weights: str | None) -> str:
    """Return the weights file of `local-dir:FOLDER`, or that of the settings. Raises as `given_weights`."""
    return given_weights(weights or str(Path(model.removeprefix(FOLDER)) / WEIGHTS))


def folder_config(model: str, read: Callable[[Any], T], what: str) -> tuple[T, str]:
    """Return what a function reads from the config file of `local-dir:FOLDER`, and the hash of that file.

    Args:
        read: takes the parsed file.
        what: end of the message, as in `of a SAM`.

    Raises:
        UsageError: the file cannot be read, or lacks what the function needs.
    """
    folder = Path(model.removeprefix(FOLDER))
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        found = read(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{model}: {folder} has no readable {CONFIG} {what} ({error}).") from None
    return found, hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def given_weights(weights: str, architecture: str = "") -> str:
    """Return the weights file of a setting, or `random:SEED`.

    Args:
        architecture: of open_clip, whose tags the setting could have named instead.

    Raises:
        UsageError: there is no such file. It names the nearest tag.
    """
    if weights.startswith(RANDOM):
        if not weights.removeprefix(RANDOM).isdecimal():
            raise UsageError(f"weights {weights!r}: write random:SEED with a whole number.")
        return weights
    if not Path(weights).is_file():
        tags = open_clip_tables.tags(architecture) if architecture else []
        raise UsageError(f"There is no weights file {weights}.{nearest(weights, tags)}")
    if Path(weights).suffix not in WEIGHT_SUFFIXES:
        raise UsageError(f"The weights file {weights} does not end with one of {', '.join(WEIGHT_SUFFIXES)}.")
    return weights


def local_file(name: str) -> str | None:
    """Return a file of the checkpoint folders."""
    return next((str(folder / name) for folder in checkpoint_folders() if (folder / name).is_file()), None)


def cached_file(repository: str, *names: str) -> str | None:
    """Return the first of the named files of a repository that is in the hub's cache."""
    found = cached(repository, names)
    return str(found) if found else None


def missing(name: str, file: str = "", preset: Preset | None = None, what: str = "") -> str:
    """Raise MissingModels for one model. Args: as for `preset_weights`."""
    kind = NAMES[preset.kind if preset else "clip"]
    licence, weight = (preset.licence, preset.size) if preset else ("", None)
    gated = preset is not None and preset.gated
    alternative = f"set OVSEG_CHECKPOINTS to a folder that has {file}" if file else ""
    raise MissingModels([Missing(name, what or kind, weight, licence, gated, alternative)])
