"""The plans of the stages of `method: sam3`. They import no model library."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ovseg_batch.errors import UsageError
from ovseg_batch.io.tables import ANNOTATION, WORD_MASK
from ovseg_batch.methods.tiles import grid_views
from ovseg_batch.models.clip_tokens import require_short
from ovseg_batch.settings import Config
from ovseg_batch.settings.readers import read_settings
from ovseg_batch.stages.base import ModelKind, Resources, StagePlan
from ovseg_batch.stages.resolved import Resolved

#: a word in an image: its presence, the best score of its queries, and whether that reaches the floor
WORD = pa.struct(
    [
        pa.field("query", pa.int32()),
        pa.field("presence", pa.float32()),
        pa.field("best", pa.float32()),
        pa.field("found", pa.bool_()),
    ]
)


class TokensPlan(StagePlan):
    """Keeps SAM 3's tokens of every image: array `tokens` (s / patch, s / patch, C) fp16. No word decides them.

    With `sam3.tile` they are those of the views of `grid_views`: (V, s / patch, s / patch, C).
    """

    name = "tokens"
    arrays = True
    reads_images = True
    columns = pa.schema([pa.field("height", pa.int32()), pa.field("width", pa.int32())])

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("sam3",)

    @staticmethod
    def cost_of(config: Config) -> str:
        return "SAM 3's image encoder"

    def __init__(self, run: Resolved) -> None:
        self._run, self._spec, self._precision = run.config.run, run.sam3, run.precision(run.sam3)
        self._side, self._tile = run.config.sam3.size or self._spec.window, run.config.sam3.tile

    def inputs(self) -> dict[str, Any]:
        return {
            "sam3": self._spec.identity(),
            "precision": self._precision(),
            "size": self._side,
            **({} if self._tile is None else {"tile": self._tile}),
            **self._run.limits(),
        }

    def estimate_bytes(self, height: int, width: int) -> int:
        views = len(grid_views((height, width), self._tile))
        return 2 * self._spec.width * (self._side // self._spec.patch) ** 2 * views


class Sam3Plan(StagePlan):
    """Keeps the masks that SAM 3 finds for every word, and a map of every word that has one.

    `words` has the presence of every word and its best score. `word_masks` has the masks whose score reaches
    `sam3.floor`. The array `maps` (W, h, w) uint8 has the map of each word with `found` (`concepts.fused_word`), in the
    order of `words`. `sam3.maps` decides which words these are.
    """

    name = "sam3"
    arrays = True
    words_in: tuple[str, ...] = ("queries", "query_class", "classes")
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("words", pa.list_(WORD)),
            pa.field("word_masks", pa.list_(WORD_MASK)),
        ]
    )

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return ("tokens",) if config.sam3.cache == "embeddings" else ()

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("sam3",)

    @staticmethod
    def cost_of(config: Config) -> str:
        encoder = "" if config.sam3.cache == "embeddings" else "SAM 3's image encoder and "
        return f"{encoder}SAM 3's detector once a word"

    @staticmethod
    def query_setting(config: Config) -> tuple[str, str] | None:
        return ("sam3.cache", "embeddings")

    def __init__(self, run: Resolved) -> None:
        self._run, self._settings = run.config.run, run.config.sam3
        self._spec, self._precision = run.sam3, run.precision(run.sam3)
        self._side = self._settings.size or self._spec.window
        self._tile, self._vocabulary = self._settings.tile, run.vocabulary
        self.needs = self.needs_of(run.config)
        self.reads_images = not self.needs
        require_short(self._vocabulary.queries, self._spec.context, "this SAM 3")

    def inputs(self) -> dict[str, Any]:
        settings, vocabulary = self._settings, self._vocabulary
        return {
            "sam3": self._spec.identity(),
            "precision": self._precision(),
            "size": self._side,
            "floor": settings.floor,
            "mask": settings.mask,
            "maps": settings.maps,
            **({} if settings.tile is None else {"tile": settings.tile}),
            "queries": list(vocabulary.queries),
            "query_class": list(vocabulary.query_class),  # a row's prompts are names of classes
            "classes": list(vocabulary.names),
            **(self._run.limits() if self.reads_images else {}),
        }

    def estimate_bytes(self, height: int, width: int) -> None:
        return None  # as many maps as there are words in the image


class SettlePlan(StagePlan):
    """Keeps the annotations of every image, made of SAM 3's masks, in the frame after EXIF rotation."""

    name = "settle"
    needs: tuple[str, ...] = ("sam3",)
    resources = Resources(accelerator=False)
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("annotations", pa.list_(ANNOTATION)),
        ]
    )

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return ("sam3",)

    def __init__(self, run: Resolved) -> None:
        config = run.config
        _check(config)
        self._settings, self._paint = config.sam3, config.painting
        self._read, self._vocabulary = read_settings(config, self.name, "sam3"), run.vocabulary

    def inputs(self) -> dict[str, Any]:
        vocabulary = self._vocabulary
        return {
            "classes": list(vocabulary.names),
            "query_class": list(vocabulary.query_class),
            "thresholds": list(vocabulary.thresholds),
            "background": vocabulary.has_background,
            "sam3": self._read,
            "paint": self._paint,
        }


def _check(config: Config) -> None:
    """Raise UsageError for settings that exclude each other."""
    own = config.sam3
    if own.threshold < own.floor:
        raise UsageError(
            f"sam3.threshold: {own.threshold} is below sam3.floor: {own.floor}, and masks below the floor are not "
            "computed. Lower sam3.floor too."
        )
    if own.output == "semantic" and config.paint == "overlapping":
        raise UsageError("sam3.output: semantic makes one mask of each class, so it needs paint: exclusive.")
