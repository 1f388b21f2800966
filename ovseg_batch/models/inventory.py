"""List the named models: size, licence, and the location of their files on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants

from ovseg_batch.errors import OvsegError
from ovseg_batch.models import pipelines, presets, zoo
from ovseg_batch.models.pipelines import PipelinePreset
from ovseg_batch.models.presets import Preset
from ovseg_batch.units import size

State = Literal["embedded", "here", "missing"]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A named model.

    Attributes:
        kind: `clip`, `sam`, `dino`, `owl`, `sam3`, `matte` or `inpaint`.
        state: `embedded` in the package, `here` on this machine, or `missing`.
        size: bytes of the local files or of the download. None where unknown before the download.
        gated: whether the hub requires that its licence is accepted there before a download.
        path: the weights file or the pipeline's folder; empty if missing.
        hub: its repository on the Hugging Face hub; empty for embedded models.
    """

    kind: str
    name: str
    state: State
    size: int | None
    licence: str
    gated: bool
    architecture: str
    path: str
    hub: str


def list_models() -> list[ListedModel]:
    """Return every model that has a name. Reads no weights and uses no network."""
    models = [model for group in presets.NAMED.values() for model in group.items()]
    return [*(_model(*model) for model in models), *(_pipeline(*model) for model in pipelines.PIPELINES.items())]


def _model(name: str, preset: Preset) -> ListedModel:
    path = _found(lambda: zoo.resolve(preset.kind, name).weights)
    return ListedModel(
        kind=preset.kind,
        name=name,
        state=_state(path, preset.embedded),
        size=Path(path).stat().st_size if path else preset.size,
        licence=preset.licence,
        gated=preset.gated,
        architecture=f"{preset.architecture} {preset.tag}".strip(),
        path=path,
        hub=preset.hub,
    )


def _pipeline(name: str, preset: PipelinePreset) -> ListedModel:
    path = _found(lambda: str(zoo.resolve_inpainting(name).folder))
    return ListedModel(
        kind="inpaint",
        name=name,
        state=_state(path, not preset.hub),
        size=sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file()) if path else None,
        licence=preset.licence,
        gated=preset.gated,
        architecture="",
        path=path,
        hub=preset.hub,
    )


def table(listed: Sequence[ListedModel]) -> str:
    """Return the models as a text table, followed by the folders that were searched."""
    rows = [("kind", "name", "state", "size", "licence", "where")]
    for one in listed:
        licence = f"{one.licence} (gated)" if one.gated else one.licence
        download = "unknown" if one.size is None else size(one.size)
        rows.append((one.kind, one.name, one.state, download, licence, one.path or f"hub: {one.hub}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    folders = ", ".join(map(str, zoo.checkpoint_folders()))
    return "\n".join([*lines, "", f"Searched: {folders}; the hub's cache {constants.HF_HUB_CACHE}."])


def _found(resolve: Callable[[], str]) -> str:
    try:
        return resolve()
    except OvsegError:
        return ""


def _state(path: str, embedded: bool) -> State:
    if not path:
        return "missing"
    return "embedded" if embedded else "here"
