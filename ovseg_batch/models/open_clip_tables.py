"""Architectures and pretrained weights of open_clip. It is imported only for tags without a preset."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.models import presets

QUICK_GELU_SUFFIX = "-quickgelu"
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.safetensors")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Pretrained weights of open_clip.

    Attributes:
        hub: repository on the Hugging Face hub.
        files: possible names of the weights file, in the order in which they are tried.
        quick_gelu: whether the weights need QuickGELU. None: open_clip does not state it.
    """

    hub: str
    files: tuple[str, ...] = HUB_FILES
    quick_gelu: bool | None = None


@dataclass(frozen=True, slots=True)
class TextFiles:
    """Files of a text tower in a hub repository: at least one of `needed`, and those of `further` that exist."""

    repository: str
    needed: tuple[str, ...]
    further: tuple[str, ...] = ()


def architectures() -> dict[str, Path]:
    """Return the JSON files of open_clip's architectures by name."""
    package = importlib.util.find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or () for file in Path(folder, "model_configs").glob("*.json")]
    return {file.stem: file for file in sorted(files)}


def architecture(name: str) -> dict[str, Any] | None:
    """Return the settings of an architecture, or None for a name that open_clip does not have."""
    file = architectures().get(name)
    return None if file is None else dict(json.loads(file.read_text(encoding="utf-8")))


def pretrained(architecture: str, tag: str) -> Pretrained | None:
    """Return the weights of a tag of an architecture, or None if the architecture has no such tag.

    The tags of presets are in the table of this package. Only other tags need open_clip.
    """
    if not re.fullmatch(r"[\w-]+", tag) or not architecture:
        return None  # a path, or random:SEED
    for preset in presets.CLIP.values():
        if (preset.architecture, preset.tag) == (architecture, tag):
            return Pretrained(preset.hub, quick_gelu=architecture.endswith(QUICK_GELU_SUFFIX) or None)
    import open_clip

    found = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    if not found:
        return None
    owner, repository, file = (*found.get("hf_hub", "").split("/"), "", "")[:3]
    hub = f"{owner}/{repository}" if repository else ""
    return Pretrained(hub, (file,) if file else HUB_FILES, found.get("quick_gelu"))


def tags(architecture: str) -> list[str]:
    """Return the tags of an architecture. Imports open_clip."""
    import open_clip

    return list(open_clip.list_pretrained_tags_by_model(architecture))


def text_files(config: Mapping[str, Any]) -> list[TextFiles]:
    """Return the files that the text tower of an architecture reads from the hub.

    CLIP's standard towers use the tokenizer in the open_clip package. Other towers name a tokenizer of transformers,
    and some a model of transformers, whose weights are in the CLIP's file.
    """
    text = config.get("text_cfg", {})
    tower, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    needed = [TextFiles(tower, (CONFIG,))] if tower else []
    return [*needed, TextFiles(tokenizer, TOKENIZER, (CONFIG,))] if tokenizer else needed
