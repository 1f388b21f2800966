"""The plan of the edit stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io.hashing import file_hash
from ovseg_batch.models.pipelines import PIPELINES, PipelineSpec
from ovseg_batch.models.precision import precision
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import ANSWER_STAGES, ModelKind, Resources
from ovseg_batch.stages.resolved import Resolved

GENERATED = ("remove", "replace", "style")
STEERED = ("replace", "style")  # these need words
KEEPS = ("cutout", "fill", "mask", "crop")  # these keep the masked pixels unless `edit.drop` names labels
STRENGTH = {"style": 0.6}
WITHOUT_MASK = {"cutout": "skip", "crop": "skip", "fill": "fill"}  # mode that keeps labels → `on_empty: auto`


@dataclass(frozen=True, slots=True)
class InpaintParameters:
    """The parameters of the generator: those of the settings, or defaults of the model."""

    size: int  # pixels a side of a square
    steps: int
    guidance: float
    strength: float

    @classmethod
    def of(cls, config: Config, spec: PipelineSpec) -> InpaintParameters:
        said = config.inpaint
        usual = spec.removing if config.edit.mode == "remove" else spec.usual
        return cls(
            said.size or spec.size,
            said.steps or usual.steps,
            usual.guidance if said.guidance is None else said.guidance,
            said.strength or STRENGTH.get(config.edit.mode, 1.0),
        )


class EditPlan:
    """Keeps edited images. `files` are their names below the stage's folder, and later below `edited/`.

    `unchanged` states why the edit has no effect on an image. It is null where the edited file shows a change.
    """

    name = "edit"
    version = 4
    arrays = False
    reads_images = True
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("masks", pa.int32()),
            pa.field("files", pa.list_(pa.string())),
            pa.field("labels", pa.list_(pa.string())),
            pa.field("prompts", pa.list_(pa.string())),
            pa.field("unchanged", pa.string()),
        ]
    )

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return (ANSWER_STAGES[config.method],)

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("inpaint",) if config.edit.mode in GENERATED else ()

    @staticmethod
    def cost_of(config: Config) -> str:
        if config.edit.mode not in GENERATED:
            return ""
        steps = config.inpaint.steps or PIPELINES[config.inpaint.model].usual.steps
        return f"{steps} steps of the generator for each mask"

    @staticmethod
    def query_setting(config: Config) -> tuple[str, str] | None:
        return None

    def __init__(self, run: Resolved) -> None:
        config = self._config = run.config
        self.needs = self.needs_of(config)
        edit = config.edit
        self.resources = Resources(accelerator=edit.mode in GENERATED)
        self._spec = run.inpaint if edit.mode in GENERATED else None
        self._parameters = None if self._spec is None else InpaintParameters.of(config, self._spec)
        self._chosen = self._labels()
        self._keeps = bool(edit.keep) or (not edit.drop and edit.mode in KEEPS)
        self._on_empty: str = edit.on_empty
        if edit.on_empty == "auto":
            self._on_empty = WITHOUT_MASK.get(edit.mode, "copy") if self._keeps else "copy"
        _check_edit(config)

    def _labels(self) -> frozenset[str]:
        """Return the labels whose masks count. Raises UsageError for an unknown label."""
        known = [label.name for label in self._config.labels]
        edit = self._config.edit
        for name in (*edit.keep, *edit.drop, *edit.prompts):
            if name not in known:
                raise UsageError(f"edit: {name!r} is not among the labels.{nearest(name, known)} They are: {known}.")
        return frozenset(edit.keep or edit.drop or known)

    def inputs(self) -> dict[str, Any]:
        config = self._config
        inputs: dict[str, Any] = {"edit": config.edit.model_dump(mode="json"), "labels": sorted(self._chosen)}
        if config.edit.fill.kind == "image" and config.edit.fill.image:
            inputs["background"] = file_hash(config.edit.fill.image)
        if self._spec is not None and self._parameters is not None:
            own = config.inpaint.model_dump(mode="json", include={"context", "batch_size"})
            inputs["inpaint"] = {**own, **asdict(self._parameters)}
            inputs["pipeline"] = self._spec.identity()
            inputs["precision"] = precision(config.run.precision, config.run.device)
        return inputs

    def estimate_bytes(self, height: int, width: int) -> int:
        return 0


def _check_edit(config: Config) -> None:
    """Raise UsageError for settings that cannot be applied to any image."""
    edit = config.edit
    if edit.mode == "cutout" and edit.format == "jpeg":
        raise UsageError("edit.mode: cutout makes transparency, which JPEG cannot hold. Set edit.format: png or webp.")
    if edit.apart and edit.mode not in ("cutout", "mask", "crop"):
        raise UsageError(f"edit.apart goes with cutout, mask and crop; {edit.mode} changes one picture in place.")
    if edit.mode == "fill" and edit.fill.kind == "image" and not Path(edit.fill.image or "").is_file():
        raise UsageError(f"edit.fill.image: there is no picture {edit.fill.image}.")


def needs_prompts(config: Config) -> bool:
    """Return whether the manifest must contain prompts, because the settings have no prompt for some labels."""
    edit = config.edit
    chosen = edit.drop or tuple(label.name for label in config.labels)
    said = bool(edit.prompt.strip()) or (not edit.keep and all(edit.prompts.get(name, "").strip() for name in chosen))
    return edit.mode in STEERED and not said
