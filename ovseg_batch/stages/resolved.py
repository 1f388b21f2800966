"""The settings of a run with resolved names: words, and models as files on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.models import zoo
from ovseg_batch.models.pipelines import PipelineSpec
from ovseg_batch.models.precision import precision
from ovseg_batch.models.zoo import ModelSpec
from ovseg_batch.settings import WITH_DINO, Config
from ovseg_batch.stages.words import Words


@dataclass(frozen=True)
class Resolved:
    """What every stage is made of. It can be pickled, with the models that it has resolved.

    Each model raises UsageError for a name that nothing has, and MissingModels where its files are not on this machine.

    Attributes:
        config: the settings.
        words: what CLIP encodes under these settings.
        parts: the runs of the methods that this one merges. Their stages have the same results as in a run of that
            method alone.
    """

    config: Config
    words: Words
    parts: tuple[Resolved, ...] = ()

    def precision(self, spec: ModelSpec) -> Callable[[], str]:
        """Return a function that returns the precision of a model. It raises UsageError without the run's device."""
        own: str | None = getattr(self.config, spec.kind).precision
        return partial(precision, own or self.config.run.precision, self.config.run.device, not spec.embedded)

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes and their queries."""
        return self.words.vocabulary

    @cached_property
    def clip(self) -> ModelSpec:
        """The CLIP of the settings."""
        return zoo.resolve("clip", self.config.clip.model, self.config.clip.weights)

    @cached_property
    def sam(self) -> ModelSpec:
        """The SAM2 of the settings."""
        return zoo.resolve("sam", self.config.sam.model, self.config.sam.weights)

    @cached_property
    def dino(self) -> ModelSpec:
        """The DINO of the settings."""
        return zoo.resolve("dino", self.config.dino.model, self.config.dino.weights)

    @cached_property
    def owl(self) -> ModelSpec:
        """The OWLv2 of the settings."""
        return zoo.resolve("owl", self.config.owl.model, self.config.owl.weights)

    @cached_property
    def sam3(self) -> ModelSpec:
        """The SAM 3 of the settings."""
        return zoo.resolve("sam3", self.config.sam3.model, self.config.sam3.weights)

    @cached_property
    def matte(self) -> ModelSpec | None:
        """The matting network of the settings; None where they name none."""
        model = self.config.edit.alpha.model
        return None if model is None else zoo.resolve("matte", model)

    @cached_property
    def inpaint(self) -> PipelineSpec:
        """The inpainting pipeline of the settings."""
        return zoo.resolve_inpainting(self.config.inpaint.model)

    @property
    def patch(self) -> int:
        """Side in pixels of a cell of the dense map of a window."""
        return (self.dino if self.config.dense.attention in WITH_DINO else self.clip).patch

    @property
    def window(self) -> int:
        """Side of a window in pixels; the model's image size unless the settings have another."""
        return self.config.dense.window or self.clip.window

    @property
    def stride(self) -> int:
        """Distance of windows in pixels."""
        stride = self.config.dense.stride
        return stride if isinstance(stride, int) else max(1, round(stride * self.window))
