"""The plans of the stages that compute masks. They import no model library.

A stage is its plan and the code that computes it: `DenseStage(DensePlan)`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa

from ovseg_batch.errors import UsageError
from ovseg_batch.io.hashing import file_hash, listing_hash
from ovseg_batch.io.region_maps import MAP_SUFFIX
from ovseg_batch.io.tables import ANNOTATION, PROPOSAL
from ovseg_batch.methods.windows import long_side_size, resized_size, window_boxes
from ovseg_batch.models import zoo
from ovseg_batch.models.tipsv2_layout import is_tipsv2
from ovseg_batch.settings import CORRCLIP, REGION_LIMITED, SPLICED, WITH_DINO, Config, DenseConfig
from ovseg_batch.settings.readers import read_settings
from ovseg_batch.stages.base import ModelKind, StagePlan
from ovseg_batch.stages.encoder_rules import require_clip, require_short_words, require_trained
from ovseg_batch.stages.resolved import Resolved

FEATURE_SIDE = 32  # patches, the longest side of the SAM2 features that `propose` keeps
VIEWS = {"plain": 1, "itaclip": 5}  # values of dense.views, and CLIP's passes for each window
VIEW_WEIGHT = 0.75  # dense.view_weight that no fingerprint holds, so that results of earlier versions stay valid


class EncodePlan(StagePlan):
    """Keeps SAM2's embedding of every image: arrays `coarse`, `fine0` and `fine1`, (C, h, w) fp16 each."""

    name = "encode"
    version = 3
    arrays = True
    reads_images = True
    columns = pa.schema([pa.field("height", pa.int32()), pa.field("width", pa.int32())])

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("sam",)

    def __init__(self, run: Resolved) -> None:
        self._run, self._spec, self._precision = run.config.run, run.sam, run.precision(run.sam)

    def inputs(self) -> dict[str, Any]:
        return {"sam": self._spec.identity(), "precision": self._precision(), **self._run.limits()}

    def estimate_bytes(self, height: int, width: int) -> int:
        return 2 * sum(map(math.prod, embedding_shapes(self._spec).values()))


def embedding_shapes(sam: zoo.ModelSpec) -> dict[str, tuple[int, int, int]]:
    """Return name → shape (C, h, w) of the arrays that `encode` stores per image."""
    parts = {"coarse": (16, 1), "fine0": (4, 8), "fine1": (8, 4)}  # stride in pixels, divisor of the width
    if sam.is_sam1:
        return {"coarse": (sam.width, sam.window // sam.patch, sam.window // sam.patch)}
    return {
        name: (sam.width // divisor, sam.window // stride, sam.window // stride)
        for name, (stride, divisor) in parts.items()
    }


class ProposePlan(StagePlan):
    """Keeps class-less masks of every image, at its original size in the frame after EXIF rotation.

    For `dense.attention: corrclip` it also keeps SAM2's features: array `features` (C, h, w) fp16, at most
    `FEATURE_SIDE` a side.
    """

    name = "propose"
    version = 6
    reads_images = True
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("points", pa.int32()),
            pa.field("proposals", pa.list_(PROPOSAL)),
        ]
    )

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("sam",) if config.propose.masks is None else ()

    @staticmethod
    def cost_of(config: Config) -> str:
        points = config.propose.points_per_side**2
        return f"SAM2's encoder and {points} prompts" if config.propose.masks is None else ""

    def __init__(self, run: Resolved) -> None:
        _check_propose(run.config)
        self._run, self._settings = run.config.run, run.config.propose
        self._read = read_settings(run.config, self.name, "propose")
        self._masks = None if self._settings.masks is None else Path(self._settings.masks)
        self._spec = run.sam if self._masks is None else None
        if self._spec is not None:
            self._precision = run.precision(self._spec)
        self.arrays = run.config.dense.attention == CORRCLIP

    def inputs(self) -> dict[str, Any]:
        if self._spec is None or self._masks is not None:
            return {"masks": listing_hash(Path(self._masks or ""), MAP_SUFFIX), **self._run.limits()}
        return {
            "sam": self._spec.identity(),
            "precision": self._precision(),
            "propose": self._read,
            "features": self.arrays,
            **self._run.limits(),
        }

    def estimate_bytes(self, height: int, width: int) -> int:
        if self._spec is None or not self.arrays:
            return 0
        return 2 * self._spec.width * min(self._spec.window // 16, FEATURE_SIDE) ** 2


class DensePlan(StagePlan):
    """Keeps the cosine similarities of every window, array `logits` (windows, channels, gh, gw) fp16.

    Under `dense.cache: features` it keeps the L2-normalised patch features instead: array `features` (windows, gh, gw,
    D) fp16. `dense.attention: trident` has one window, the whole image, with the patches of SAM. There the highest
    similarity of each patch is subtracted from the others.
    """

    name = "dense"
    version = 7
    arrays = True
    reads_images = True
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("resized_height", pa.int32()),
            pa.field("resized_width", pa.int32()),
            pa.field("windows", pa.int32()),
        ]
    )

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return ("propose",) if config.dense.attention in REGION_LIMITED else ()

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        if config.dense.attention == SPLICED:
            return ("clip", "dino", "sam")
        return ("clip", "dino") if config.dense.attention in WITH_DINO else ("clip",)

    @staticmethod
    def cost_of(config: Config) -> str:
        if config.dense.attention == SPLICED:
            return "SAM's encoder, CLIP and DINO once a window"
        encoder = "TIPSv2" if is_tipsv2(config.clip.model) else "CLIP"
        models = f"{encoder} and DINO" if config.dense.attention in WITH_DINO else encoder
        return (
            f"{models} once a window"
            if (views := VIEWS[config.dense.views]) == 1
            else f"{encoder} {views} times a window"
        )

    @staticmethod
    def query_setting(config: Config) -> tuple[str, str] | None:
        return ("dense.cache", "features")

    def __init__(self, run: Resolved) -> None:
        self._config = run.config
        self._run, self._settings, self._words = run.config.run, run.config.dense, run.words
        self._spec, self._precision = run.clip, run.precision(run.clip)
        dense = self._settings
        _check_dense(dense)
        require_trained(self._spec, dense)
        require_short_words(self._spec, self._words)
        self.needs = self.needs_of(run.config)
        self._window, self._stride, self._patch = run.window, run.stride, run.patch
        self._dino_spec = run.dino if dense.attention in WITH_DINO else None
        if self._dino_spec is not None:
            self._dino_precision = run.precision(self._dino_spec)
        self._sam_spec = _spliced_sam(run) if dense.attention == SPLICED else None
        if self._sam_spec is not None:
            self._sam_precision = run.precision(self._sam_spec)
        self._short_side = dense.short_side or self._spec.short_side
        self._features = dense.cache == "features"
        self._pools = run.vocabulary.pooled and not self._features
        self._weighs_views = dense.views != "plain" and dense.view_weight != VIEW_WEIGHT

    def inputs(self) -> dict[str, Any]:
        dense = self._settings
        return {
            "clip": self._spec.identity(),
            "precision": self._precision(),
            **self._dino_inputs(),
            **self._sam_inputs(),
            "attention": dense.attention,
            "layers": list(dense.layers),
            "window": self._window,
            "stride": self._stride,
            "short_side": self._short_side,
            "long_side": dense.long_side,
            **({"cache": "features"} if self._features else self._words.inputs()),
            **({"pooled": dense.logit_scale} if self._pools else {}),
            "views": dense.views,
            **({"view_weight": dense.view_weight} if self._weighs_views else {}),
            "key_smoothing": dense.key_smoothing,
            **({"draft": True} if dense.draft else {}),
            **self._run.limits(),
        }

    def _dino_inputs(self) -> dict[str, Any]:
        if self._dino_spec is None:
            return {}
        return {"dino": self._dino_spec.identity(), "dino precision": self._dino_precision()}

    def _sam_inputs(self) -> dict[str, Any]:
        if self._sam_spec is None:
            return {}
        own = self._settings.trident.model_dump(mode="json")
        return {"sam": self._sam_spec.identity(), "sam precision": self._sam_precision(), "trident": own}

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        short_side = self._short_side if isinstance(self._short_side, int) else None
        return resized_size(height, width, short_side, self._settings.long_side, self._spec.patch)

    def work(self, height: int, width: int) -> float:
        """Return the number of windows."""
        if self._sam_spec is not None:
            return 1.0
        return float(len(window_boxes(*self._resized(height, width), self._window, self._stride)))

    def estimate_bytes(self, height: int, width: int) -> int:
        each = self._spec.width if self._features else self._words.vocabulary.channels
        if self._sam_spec is not None:
            parts, cells = 2 if self._settings.trident.halves else 1, self._sam_spec.window // self._sam_spec.patch
            return 2 * each * parts * math.prod(long_side_size(height, max(1, width // parts), cells))
        resized = self._resized(height, width)
        boxes, patch = window_boxes(*resized, self._window, self._stride), self._patch
        patches = ((boxes[:, 2] - boxes[:, 0]) // patch * ((boxes[:, 3] - boxes[:, 1]) // patch)).sum()
        return 2 * int(patches) * each


class EmbedPlan(StagePlan):
    """Keeps CLIP's embedding of every proposal: array `features` (scales, masks, D) fp16, L2-normalised."""

    name = "embed"
    version = 3
    needs: tuple[str, ...] = ("propose",)
    arrays = True
    reads_images = True
    columns = pa.schema([pa.field("masks", pa.int32()), pa.field("forwards", pa.int32())])  # pictures through CLIP

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return ("propose",)

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("clip",)

    @staticmethod
    def cost_of(config: Config) -> str:
        return (
            "CLIP once"
            if config.classify.scorer == "mask-tokens"
            else f"CLIP {len(config.classify.scales)} × for each mask"
        )

    def __init__(self, run: Resolved) -> None:
        self._run, self._settings = run.config.run, run.config.classify
        self._spec, self._precision = run.clip, run.precision(run.clip)
        require_clip(self._spec)
        tuned = self._settings.tuned
        if tuned and not Path(tuned).is_file():
            raise UsageError(f"classify.tuned: there is no file {tuned}. scripts/training/tune_masq.py makes one.")

    def inputs(self) -> dict[str, Any]:
        settings = self._settings
        crops = {"scales": list(settings.scales), "outside": settings.outside}
        tokens = {"tuned": settings.tuned and file_hash(settings.tuned)}
        return {
            "clip": self._spec.identity(),
            "precision": self._precision(),
            "scorer": settings.scorer,
            **(crops if settings.scorer == "crops" else tokens),
            **self._run.limits(),
        }

    def estimate_bytes(self, height: int, width: int) -> None:
        return None  # as many features as there are masks


class ClassifyPlan(StagePlan):
    """Keeps the annotations of every image, made of its proposals, in the frame after EXIF rotation."""

    name = "classify"
    version = 7
    needs: tuple[str, ...] = ("propose", "embed")
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("annotations", pa.list_(ANNOTATION)),
        ]
    )

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return ("propose", "embed")

    @staticmethod
    def models_of(config: Config) -> tuple[ModelKind, ...]:
        return ("clip",)

    def __init__(self, run: Resolved) -> None:
        self._settings, self._spec = run.config.classify, run.clip
        self._read, self._paint = read_settings(run.config, self.name, "classify"), run.config.painting
        self._vocabulary, self._templates = run.vocabulary, run.words.templates
        confusers = {label.name: label.confusers for label in run.config.labels}
        self._confusers = [confusers.get(name, ()) for name in self._vocabulary.names]

    def inputs(self) -> dict[str, Any]:
        vocabulary = self._vocabulary
        return {
            "clip": self._spec.identity(),
            "templates": list(self._templates),
            "classes": list(vocabulary.names),
            "queries": list(vocabulary.queries),
            "query_class": list(vocabulary.query_class),
            "thresholds": list(vocabulary.thresholds),
            "background": vocabulary.has_background,
            "confusers": [list(words) for words in self._confusers],
            "classify": self._read,
            **({"paint": self._paint} if self._paint != "exclusive" else {}),
        }


def _check_propose(config: Config) -> None:
    """Raise UsageError for a folder of region maps that does not exist, or that lacks what another setting needs."""
    folder = config.propose.masks
    if folder is None:
        return
    if not Path(folder).is_dir():
        raise UsageError(
            f"propose.masks: there is no folder {folder}. It must hold one NAME{MAP_SUFFIX} for each image."
        )
    if config.dense.attention == CORRCLIP:
        raise UsageError(
            f"dense.attention: {CORRCLIP} needs SAM2's features, and propose.masks replaces SAM2. "
            f"Set dense.attention: {WITH_DINO[0]}, or leave out propose.masks."
        )


def _spliced_sam(run: Resolved) -> zoo.ModelSpec:
    """Return the SAM that aggregates the image. Raises UsageError for a SAM2, or for settings that exclude it."""
    if run.config.dense.draft:
        raise UsageError(f"dense.attention: {SPLICED} goes with dense.draft: false, because SAM needs all pixels.")
    if not run.sam.is_sam1:
        raise UsageError(
            f"dense.attention: {SPLICED} reads the attention of SAM's first version, and sam.model is "
            f"{run.sam.name!r}. Set sam.model: sam1-base."
        )
    return run.sam


def _check_dense(dense: DenseConfig) -> None:
    """Raise UsageError for settings that exclude each other."""
    if dense.key_smoothing and dense.views != "plain":
        raise UsageError("dense.key_smoothing goes with dense.views: plain alone.")
    if dense.attention in (*REGION_LIMITED, SPLICED) and (
        dense.key_smoothing or dense.views != "plain" or dense.layers != (1.0,)
    ):
        raise UsageError(
            f"dense.attention: {dense.attention} goes with dense.views: plain, dense.layers: [1.0] and no "
            "dense.key_smoothing."
        )
    if dense.cache == "features" and (dense.key_smoothing or dense.views != "plain"):
        raise UsageError(
            "dense.cache: features goes with dense.views: plain and no key_smoothing, which need more than features."
        )
