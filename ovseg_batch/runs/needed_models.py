"""Determine the models that settings need, and fetch missing ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovseg_batch.models import presets, zoo
from ovseg_batch.models.missing import Missing, MissingModels
from ovseg_batch.models.pipelines import PIPELINES
from ovseg_batch.models.zoo import UNKNOWN_LICENCE
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import ModelKind
from ovseg_batch.stages.registry import plans_of

if TYPE_CHECKING:
    from ovseg_batch.models.fetching import Report


@dataclass(frozen=True, slots=True)
class NeededModel:
    """A model that the stages load: the section of the settings that names it, its name, and its weights if set."""

    kind: ModelKind
    model: str
    weights: str | None = None

    @property
    def key(self) -> str:
        """The key of the settings that names it."""
        return "edit.alpha.model" if self.kind == "matte" else f"{self.kind}.model"

    @property
    def licence(self) -> str:
        """The licence of its weights, or a hint where they have no name."""
        if self.kind == "inpaint":
            named = PIPELINES.get(self.model)
            return named.licence if named else UNKNOWN_LICENCE
        preset = presets.named(self.kind).get(presets.preset_of_hub(self.kind, self.model))
        return preset.licence if preset and self.weights is None else UNKNOWN_LICENCE

    def missing(self) -> tuple[Missing, ...]:
        """Return its missing files. Raises UsageError for an unknown name."""
        try:
            if self.kind == "inpaint":
                zoo.resolve_inpainting(self.model)
            else:
                zoo.resolve(self.kind, self.model, self.weights)
        except MissingModels as error:
            return error.missing
        return ()


def needed_models(config: Config) -> list[NeededModel]:
    """Return the models that the stages of these settings load. Labels are not needed."""
    every = {
        "clip": NeededModel("clip", config.clip.model, config.clip.weights),
        "sam": NeededModel("sam", config.sam.model, config.sam.weights),
        "dino": NeededModel("dino", config.dino.model, config.dino.weights),
        "owl": NeededModel("owl", config.owl.model, config.owl.weights),
        "sam3": NeededModel("sam3", config.sam3.model, config.sam3.weights),
        "inpaint": NeededModel("inpaint", config.inpaint.model),
    }
    needed = {kind for plan in plans_of(config) for kind in plan.models_of(config)}
    if "matte" in needed:
        every["matte"] = NeededModel("matte", config.edit.alpha.model or "")
    return [model for kind, model in every.items() if kind in needed]


def missing_models(config: Config) -> list[Missing]:
    """Return every model of these settings that is not on this machine."""
    return [missing for model in needed_models(config) for missing in model.missing()]


def require_models(config: Config) -> None:
    """Raise MissingModels with every model of these settings that is not on this machine."""
    missing = missing_models(config)
    if missing:
        raise MissingModels(missing)


def fetch_missing(config: Config, report: Report) -> dict[str, str]:
    """Fetch every model of these settings that is not on this machine.

    Returns:
        The names that were fetched → the files of their weights, or the folders of pipelines.

    Raises:
        OvsegError: as `fetching.fetch`.
    """
    from ovseg_batch.models import fetching  # imports an HTTP library

    return {missing.name: fetching.fetch(missing.name, report) for missing in missing_models(config)}
