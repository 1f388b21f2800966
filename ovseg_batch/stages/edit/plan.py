"""The plan of the edit stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io.hashing import file_hash
from ovseg_batch.models.pipelines import PIPELINES, PipelineSpec
from ovseg_batch.models.precision import precision
from ovseg_batch.settings import Config, EditConfig
from ovseg_batch.settings.edit_modes import EDIT_MODES, EditMode, modes_that
from ovseg_batch.settings.readers import read_settings
from ovseg_batch.stages.base import ModelKind, Resources, StagePlan, answer_stage
from ovseg_batch.stages.resolved import Resolved


@dataclass(frozen=True, slots=True)
class InpaintParameters:
    """The parameters of the generator: those of the settings, or defaults of the model."""

    size: int  # pixels a side of a square
    steps: int
    guidance: float
    strength: float

    @classmethod
    def of(cls, config: Config, spec: PipelineSpec) -> InpaintParameters:
        """Return the parameters under these settings. Raises UsageError for a size that the model cannot compute."""
        settings = config.inpaint
        usual = spec.removing if config.edit.mode == "remove" else spec.usual
        problem = spec.family.size_problem(settings.size or spec.size)
        if problem and settings.size:
            raise UsageError(f"inpaint.size: {settings.size} is not possible with {spec.loader}: {problem}.")
        return cls(
            settings.size or spec.size,
            settings.steps or usual.steps,
            usual.guidance if settings.guidance is None else settings.guidance,
            settings.strength or EDIT_MODES[config.edit.mode].strength,
        )


class EditPlan(StagePlan):
    """Keeps edited images. `files` are their names below the stage's folder, and later below `edited/`.

    `unchanged` states why the edit has no effect on an image. It is null where the edited file shows a change.
    """

    name = "edit"
    version = 4
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
        return (answer_stage(config),)

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        if EDIT_MODES[config.edit.mode].generated:
            return ("inpaint",)
        return ("matte",) if uses_matte(config.edit) else ()

    @staticmethod
    def cost_of(config: Config) -> str:
        if not EDIT_MODES[config.edit.mode].generated:
            return "ViTMatte along the edges" if uses_matte(config.edit) else ""
        steps = config.inpaint.steps or PIPELINES[config.inpaint.model].usual.steps
        return f"{steps} steps of the generator for each mask"

    def __init__(self, run: Resolved) -> None:
        config = run.config
        self._run, self._settings, self._inpaint = config.run, config.edit, config.inpaint
        self._read = read_settings(config, self.name, "edit")
        self._read.get("alpha", {}).pop("model", None)  # the hash of its weights decides, not its name
        self.needs = self.needs_of(config)
        edit, mode = config.edit, EDIT_MODES[config.edit.mode]
        self._matte_spec = run.matte if uses_matte(edit) else None
        self.resources = Resources(mode.generated or self._matte_spec is not None, shared=not mode.generated)
        self._spec = run.inpaint if mode.generated else None
        self._parameters = None if self._spec is None else InpaintParameters.of(config, self._spec)
        self._chosen = self._labels([label.name for label in config.labels])
        self._keeps = keeps_masks(edit)
        self._on_empty: str = edit.on_empty
        if edit.on_empty == "auto":
            self._on_empty = mode.without_mask if self._keeps else "copy"
        _check_edit(edit, mode)

    def _labels(self, known: Sequence[str]) -> frozenset[str]:
        """Return the labels whose masks count. Raises UsageError for a name that is no label."""
        edit = self._settings
        for name in (*edit.keep, *edit.drop, *edit.prompts):
            if name not in known:
                raise UsageError(f"edit: {name!r} is not among the labels.{nearest(name, known)} They are: {known}.")
        return frozenset(edit.keep or edit.drop or known)

    def inputs(self) -> dict[str, Any]:
        edit, inpaint = self._settings, self._inpaint
        inputs: dict[str, Any] = {"edit": self._read, "labels": sorted(self._chosen)}
        if edit.fill.kind == "image" and edit.fill.image:
            inputs["background"] = file_hash(edit.fill.image)
        if EDIT_MODES[edit.mode].fills:
            inputs["inpaint"] = {"context": inpaint.context}
        if self._spec is not None and self._parameters is not None:
            inputs["inpaint"] |= {"batch_size": inpaint.batch_size, **asdict(self._parameters)}
            inputs["pipeline"] = self._spec.identity()
            inputs["precision"] = precision(self._run.precision, self._run.device)
        if self._matte_spec is not None:
            inputs["matte"] = self._matte_spec.identity()
            inputs["precision"] = precision(self._run.precision, self._run.device, large=True)
        return inputs


def uses_matte(edit: EditConfig) -> bool:
    """Return whether a matting network computes the edge of what the edit keeps."""
    mode = EDIT_MODES[edit.mode]
    soft = mode.soft_edge and edit.alpha.soft and edit.alpha.model is not None
    return soft and (not mode.fills or keeps_masks(edit))


def keeps_masks(edit: EditConfig) -> bool:
    """Return whether the masked pixels stay. Otherwise they are changed."""
    return bool(edit.keep) or (not edit.drop and EDIT_MODES[edit.mode].keeps)


def _check_edit(edit: EditConfig, mode: EditMode) -> None:
    """Raise UsageError for settings that cannot be applied to any image."""
    if edit.mode == "cutout" and edit.format == "jpeg":
        raise UsageError("edit.mode: cutout makes transparency, which JPEG cannot hold. Set edit.format: png or webp.")
    if edit.apart and not mode.separable:
        able = ", ".join(modes_that(lambda one: one.separable))
        raise UsageError(f"edit.apart goes with {able} alone; {edit.mode} changes one picture in place.")
    if edit.mode == "fill" and edit.fill.kind == "image" and not Path(edit.fill.image or "").is_file():
        raise UsageError(f"edit.fill.image: there is no picture {edit.fill.image}.")


def needs_prompts(config: Config) -> bool:
    """Return whether the manifest must contain prompts, because the settings have no prompt for some labels."""
    edit = config.edit
    chosen = edit.drop or tuple(label.name for label in config.labels)
    each = not edit.keep and all(edit.prompts.get(name, "").strip() for name in chosen)
    return edit.mode != "none" and EDIT_MODES[edit.mode].needs_prompt and not (edit.prompt.strip() or each)
