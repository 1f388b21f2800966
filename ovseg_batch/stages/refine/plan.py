"""The plans of the refine stage, alone or fused with the dense stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from ovseg_batch.errors import UsageError
from ovseg_batch.io.hashing import file_hash
from ovseg_batch.io.tables import ANNOTATION, PROMPT
from ovseg_batch.settings import SPLICED, Config
from ovseg_batch.settings.readers import POINTING, PROMPTING, read_settings
from ovseg_batch.stages.base import ModelKind, StagePlan
from ovseg_batch.stages.plans import DensePlan
from ovseg_batch.stages.resolved import Resolved

WHOLE = 1 << 30  # pixels; a window of this side is the whole image


class RefinePlan(StagePlan):
    """Keeps the annotations of every image, at its original size in the frame after EXIF rotation."""

    name = "refine"
    version = 14
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("points", pa.int32()),
            pa.field("annotations", pa.list_(ANNOTATION)),
            pa.field("prompts", pa.list_(PROMPT)),
        ]
    )

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return _refine_needs(config)

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("sam",) if config.refine.method in PROMPTING else ()

    @staticmethod
    def cost_of(config: Config) -> str:
        return (
            f"SAM2's encoder and one prompt for each piece of the map, {config.refine.max_points} at most"
            if config.refine.method in PROMPTING
            else ""
        )

    @staticmethod
    def query_setting(config: Config) -> tuple[str, str] | None:
        return ("sam.cache", "embeddings")

    def __init__(self, run: Resolved) -> None:
        config = run.config
        _check_refine(config)
        self._run, self._settings, self._paint = config.run, config.refine, config.painting
        self._dense, self._presence = config.dense, config.presence
        self._words, self._vocabulary = run.words, run.vocabulary
        self._read = read_settings(config, self.name, "refine")
        self._spliced = config.dense.attention == SPLICED
        self._window, self._stride = (WHOLE, WHOLE) if self._spliced else (run.window, run.stride)
        self.needs = self.needs_of(config)
        self._kept = "encode" in self.needs
        self._spec = run.sam if config.refine.method in PROMPTING else None
        if self._spec is not None:
            self._precision = run.precision(self._spec)
            if config.refine.method == "trident-map" and not self._spec.is_sam1:
                raise UsageError(
                    f"refine.method: trident-map needs SAM's first version, and sam.model is {self._spec.name!r}. "
                    "Set sam.model: sam1-base."
                )
        self.reads_images = (self._spec is not None and not self._kept) or config.refine.pamr > 0
        # The margin is at CLIP's own logit scale; at that of the cosines it is this.
        self._margin = config.presence.margin / run.clip.logit_scale if self._vocabulary.pooled else 0.0
        self._clip_spec = run.clip if config.dense.cache == "features" else None
        self._dense_inputs = DensePlan(run).inputs() if config.refine.bank else {}
        self._patch = run.patch
        self._config = config

    def inputs(self) -> dict[str, Any]:
        dense, vocabulary = self._dense, self._vocabulary
        inputs: dict[str, Any] = {
            "classes": list(vocabulary.names),
            "query_class": list(vocabulary.query_class),
            "thresholds": list(vocabulary.thresholds),
            "background": vocabulary.has_background,
            **({"pooled": True, "presence": self._presence.model_dump(mode="json")} if vocabulary.pooled else {}),
            "logit_scale": dense.logit_scale,
            "prob_threshold": dense.prob_threshold,
            "area_threshold": dense.area_threshold,
            "prompt_denoising": dense.prompt_denoising,
            "refine": self._read,
            **({"paint": self._paint} if self._paint != "exclusive" else {}),
        }
        if self._spec is not None:
            inputs["sam"] = self._spec.identity()
            inputs["precision"] = self._precision()
        if self._settings.bank:
            inputs["refine"] = {**self._read, "bank": file_hash(self._settings.bank)}
        if self._clip_spec is not None:
            inputs["words"] = {"clip": self._clip_spec.identity(), **self._words.inputs()}
        return inputs


class FusedPlan(StagePlan):
    """Computes dense and refine in one pass and keeps what refine keeps."""

    name = RefinePlan.name
    version = 1
    reads_images = True
    columns = RefinePlan.columns

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(
                need for need in (*DensePlan.needs_of(config), *RefinePlan.needs_of(config)) if need != DensePlan.name
            )
        )

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return tuple(dict.fromkeys((*DensePlan.models_of(config), *RefinePlan.models_of(config))))

    @staticmethod
    def cost_of(config: Config) -> str:
        return ", ".join(filter(None, (DensePlan.cost_of(config), RefinePlan.cost_of(config))))

    @staticmethod
    def query_setting(config: Config) -> tuple[str, str] | None:
        return DensePlan.query_setting(config)

    def __init__(self, run: Resolved) -> None:
        self._dense, self._refine = DensePlan(run), RefinePlan(run)
        self.needs = self.needs_of(run.config)

    def work(self, height: int, width: int) -> float:
        """Return the number of windows, which dense computes."""
        return self._dense.work(height, width)

    def inputs(self) -> dict[str, Any]:
        parts = (self._dense, self._refine)
        return {f"{part.name} {part.version}": part.inputs() for part in parts}


def _refine_needs(config: Config) -> tuple[str, ...]:
    """Return the stages that `refine` reads."""
    embeddings = config.refine.method in POINTING and config.sam.cache == "embeddings"
    others = (("propose", config.refine.method in ("automatic", "regions")), ("encode", embeddings))
    return ("dense", *(name for name, needed in others if needed))


def _check_refine(config: Config) -> None:
    """Raise UsageError for unknown names, or for settings that exclude each other."""
    if config.refine.bank and config.dense.cache != "features":
        raise UsageError("refine.bank compares features: it needs dense.cache: features.")
    if config.refine.bank and not Path(config.refine.bank).is_file():
        raise UsageError(
            f"refine.bank: there is no file {config.refine.bank}. `ovseg-batch bank build WORKDIR -o FILE` makes one."
        )
    if config.refine.output == "semantic" and config.painting == "overlapping":
        raise UsageError("refine.output: semantic makes one mask of each class, so it needs paint: exclusive.")
    if config.sam.cache == "embeddings" and config.refine.tile is not None:
        raise UsageError(
            "sam.cache: embeddings keeps one for the whole image, and refine.tile divides it into parts. Leave one out."
        )
