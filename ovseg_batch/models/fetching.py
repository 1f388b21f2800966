"""Fetch everything that a named model needs from the Hugging Face hub, so that it then runs without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ovseg_batch.errors import OvsegError, UsageError, nearest
from ovseg_batch.models import hub, open_clip_tables, pipelines, presets, zoo
from ovseg_batch.models.layouts import HUB_CONFIG
from ovseg_batch.models.tipsv2_layout import TOKENIZERS, is_tipsv2
from ovseg_batch.units import size

Report = Callable[[str], None]  # receives one line for the user
Choose = Callable[[Sequence[str]], list[str]]  # the names in a repository → those that are needed
VARIANTS = re.compile(r"\.(fp16|bf16|ema|non_ema)[.-]")  # additional copies of weights, which are not loaded


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one repository that a model needs."""

    repository: str
    choose: Choose


def fetch(model: str, report: Report) -> str:
    """Download the files of a model. For a model that is on this machine, no network is used.

    Args:
        model: a preset; ARCHITECTURE:TAG or ARCHITECTURE of open_clip; `hf-hub:OWNER/NAME` for a CLIP of the hub; or
            OWNER/NAME for an inpainting pipeline of the hub.
        report: called with a line before each repository.

    Returns:
        The file of the weights, or the folder of a pipeline. Empty for a model that comes with the package.

    Raises:
        UsageError: an unknown name.
        OvsegError: the hub cannot be reached or refuses, the disk is full, or a file does not have its published hash.
    """
    model = presets.preset_of_hub("matte", model)  # other OWNER/NAME are pipelines
    if any(preset.embedded for preset in _presets(model)):
        return ""
    here = _here(model)
    if here:
        return here
    if _is_pipeline(model):
        return str(_fetch_pipeline(model, report))
    paths = [path for source in _sources(model) for path in _fetch(source, model, report)]
    if model.startswith(zoo.HUB):
        config = json.loads(paths[0].read_text(encoding="utf-8")).get("model_cfg", {})
        paths += [path for source in _text_sources(config) for path in _fetch(source, model, report)]
    weights = [path for path in paths if path.suffix in zoo.WEIGHT_SUFFIXES]
    return str((weights or paths)[0])


def _here(model: str) -> str:
    """Return the weights file or the folder of a model that is complete on this machine, or an empty string."""
    architecture, _, tag = model.partition(":")
    try:
        if _is_pipeline(model):
            return str(zoo.resolve_inpainting(model).folder)
        for preset in _presets(model):
            return zoo.resolve(preset.kind, model).weights
        if model.startswith(zoo.HUB):
            return zoo.resolve("clip", model).weights
        return zoo.resolve("clip", architecture, tag).weights if tag else ""
    except OvsegError:
        return ""


def _is_pipeline(model: str) -> bool:
    return model in pipelines.PIPELINES or re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None


def _presets(model: str) -> list[presets.Preset]:
    return [group[model] for group in presets.NAMED.values() if model in group]


def _sources(model: str) -> list[Source]:
    """Return the repositories and files that a model needs. Raises UsageError."""
    for preset in _presets(model):
        if is_tipsv2(model):
            return [Source(preset.hub, _first_of([name])) for name in (preset.file, TOKENIZERS[0])]
        if preset.kind != "clip":
            return [Source(preset.hub, _first_of([preset.file]))]
    if model.startswith(zoo.HUB):
        repository = model.removeprefix(zoo.HUB)
        return [Source(repository, _first_of(names)) for names in ([HUB_CONFIG], open_clip_tables.HUB_FILES)]
    named = presets.CLIP.get(model)
    architecture, tag = (named.architecture, named.tag) if named else model.partition(":")[::2]
    config = open_clip_tables.architecture(architecture)
    weights = open_clip_tables.pretrained(architecture, tag) if tag else None
    sources = [] if config is None else _text_sources(config)
    if weights and weights.hub:
        sources.insert(0, Source(weights.hub, _first_of(weights.files)))
    if not sources or (tag and not weights):
        raise UsageError(_nothing_to_fetch(model, architecture if config else ""))
    return sources


def _nothing_to_fetch(model: str, architecture: str) -> str:
    if architecture:
        tags = open_clip_tables.tags(architecture)
        return f"{model!r} names no weights. Write {architecture}:TAG. Tags: {', '.join(tags) or 'none'}."
    named = [name for group in presets.NAMED.values() for name in group]
    names = [name for name in [*named, *pipelines.PIPELINES] if name != "demo"]
    names = [name for name in names if not any(preset.embedded for preset in _presets(name))]
    return (
        f"There is no model {model!r}.{nearest(model, names)} Names: {', '.join(names)}; or ARCHITECTURE:TAG of "
        "open_clip, hf-hub:OWNER/NAME for a CLIP of the hub, OWNER/NAME for an inpainting pipeline of the hub."
    )


def _text_sources(config: dict[str, Any]) -> list[Source]:
    """Return the tokenizer and the configuration that a text tower of transformers needs from the hub."""
    return [Source(text.repository, _all_of(text)) for text in open_clip_tables.text_files(config)]


def _first_of(names: Sequence[str]) -> Choose:
    return lambda there: [name for name in names if name in there][:1]


def _all_of(text: open_clip_tables.TextFiles) -> Choose:
    return lambda there: [name for name in (*text.needed, *text.further) if name in there]


def _fetch(source: Source, model: str, report: Report) -> list[Path]:
    files = hub.listing(source.repository)
    chosen = source.choose([file.name for file in files])
    if not chosen:
        raise OvsegError(f"{source.repository} has none of the files that {model} needs.")
    by_name = {file.name: file for file in files}
    return _download(source.repository, [by_name[name] for name in chosen], report)


def _download(repository: str, files: Sequence[hub.HubFile], report: Report) -> list[Path]:
    sizes = [file.size for file in files if file.size is not None]
    total = f", {size(sum(sizes))}" if len(sizes) == len(files) else ""
    what = files[0].name if len(files) == 1 else f"{len(files)} files"
    report(f"{repository}: {what}{total}")
    hub.require_space(repository, files)
    return [hub.download(repository, file.name) for file in files]


def _fetch_pipeline(model: str, report: Report) -> Path:
    """Fetch the files that loading a pipeline reads. Pickled weights and half-precision copies are skipped."""
    repository = pipelines.PIPELINES[model].hub if model in pipelines.PIPELINES else model
    files = hub.listing(repository)
    if pipelines.INDEX not in {file.name for file in files}:
        raise UsageError(f"{repository} is not a diffusers pipeline: it has no {pipelines.INDEX}.")
    folder = hub.download(repository, pipelines.INDEX).parent
    pipelines.require_inpainting(model, folder)  # before gigabytes of weights
    chosen = [
        file
        for part in sorted(pipelines.parts(folder))
        for file in _without_copies([file for file in files if file.name.startswith(f"{part}/")])
    ]
    _download(repository, chosen, report)
    lost = pipelines.incomplete(folder)
    if lost:
        raise OvsegError(f"{repository} has no {lost}, so diffusers cannot load it without pickled weights.")
    return folder


def _without_copies(files: Sequence[hub.HubFile]) -> list[hub.HubFile]:
    """Return the files of a component that are loaded. Half-precision files count only where there are no others."""
    used = [file for file in files if any(fnmatch(file.name, pattern) for pattern in pipelines.USED)]
    plain = [file for file in used if not VARIANTS.search(file.name)]
    weights = ".safetensors"
    lacking = not any(file.name.endswith(weights) for file in plain)
    return used if lacking else plain
