"""The plans of the stages of `method: detect`. They import no model library."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ovseg_batch.io.tables import PROPOSAL
from ovseg_batch.methods.vocabulary import prompts_of
from ovseg_batch.models.clip_tokens import require_short
from ovseg_batch.settings import Config
from ovseg_batch.settings.readers import read_settings
from ovseg_batch.stages.base import ModelKind, Resources, StagePlan
from ovseg_batch.stages.plans import ClassifyPlan
from ovseg_batch.stages.resolved import Resolved

TOKENS = 16  # tokens that OWLv2's text tower takes


class DetectPlan(StagePlan):
    """Keeps the best boxes of every image as masks without classes, at its original size after EXIF rotation.

    The arrays say what any word scores for a mask: `embeddings` (masks, D) fp16, L2-normalised, and `calibration`
    (masks, 2) float32, shift and scale of the logits.
    """

    name = "detect"
    version = 1
    arrays = True
    reads_images = True
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("boxes", pa.int32()),
            pa.field("proposals", pa.list_(PROPOSAL)),
        ]
    )

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("owl", "sam")

    @staticmethod
    def cost_of(config: Config) -> str:
        return f"OWLv2 once, SAM2's encoder and {config.detect.boxes} boxes at most"

    def __init__(self, run: Resolved) -> None:
        self._run, self._settings = run.config.run, run.config.detect
        self._read = read_settings(run.config, self.name, "detect")
        self._owl_spec, self._sam_spec = run.owl, run.sam
        self._owl_precision, self._sam_precision = run.precision(run.owl), run.precision(run.sam)

    def inputs(self) -> dict[str, Any]:
        return {
            "owl": self._owl_spec.identity(),
            "owl precision": self._owl_precision(),
            "sam": self._sam_spec.identity(),
            "precision": self._sam_precision(),
            "detect": self._read,
            **self._run.limits(),
        }

    def estimate_bytes(self, height: int, width: int) -> int:
        return self._settings.boxes * (2 * self._owl_spec.width + 8)


class ClassifyBoxesPlan(StagePlan):
    """Keeps the annotations of every image, made of the masks of `detect`. It computes on the CPU."""

    name = ClassifyPlan.name
    version = 1
    needs: tuple[str, ...] = (DetectPlan.name,)
    resources = Resources(accelerator=False)
    columns = ClassifyPlan.columns

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return (DetectPlan.name,)

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("owl",)

    def __init__(self, run: Resolved) -> None:
        self._settings, self._spec = run.config.detect, run.owl
        self._read, self._paint = read_settings(run.config, self.name, "detect"), run.config.painting
        self._vocabulary = run.vocabulary
        prompts = [
            prompt for query in self._vocabulary.queries for prompt in prompts_of(query, self._settings.templates)
        ]
        require_short(prompts, TOKENS, "OWLv2", ", or shorten detect.templates")

    def inputs(self) -> dict[str, Any]:
        vocabulary = self._vocabulary
        return {
            "owl": self._spec.identity(),
            "classes": list(vocabulary.names),
            "queries": list(vocabulary.queries),
            "query_class": list(vocabulary.query_class),
            "thresholds": list(vocabulary.thresholds),
            "detect": self._read,
            "paint": self._paint,
        }
