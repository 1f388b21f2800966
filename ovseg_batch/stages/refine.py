"""SAM2 refine: points from the dense map prompt SAM2, a vote keeps the masks that agree, one map comes out.

One image embedding an image, prompts in chunks, the best of three masks chosen at low resolution; a mask is made at
full size only to be painted, one at a time, and each instance is run-length encoded once at the original size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch

from ovseg_batch.config import Config
from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io import rle
from ovseg_batch.io.images import decode_ahead
from ovseg_batch.io.remote import shown
from ovseg_batch.methods.labelling import label_map
from ovseg_batch.methods.maskclip import denoise_prompts
from ovseg_batch.methods.pamr import pamr
from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.methods.voting import Segment, assemble
from ovseg_batch.methods.windows import stitch, window_boxes
from ovseg_batch.models import zoo
from ovseg_batch.models.device import precision, resolve_device
from ovseg_batch.models.sam import Sam
from ovseg_batch.stages.base import Resources, Upstream, failed, read_limits, split_on_failure
from ovseg_batch.stages.claimants import NOTHING, Found, guided, prompted, voted
from ovseg_batch.types import ImageRow, RowResult

Array = np.ndarray[Any, Any]

STRIP_PIXELS = 4_000_000  # counted at a time

ANNOTATION = pa.struct(
    [
        pa.field("category", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("bbox", pa.list_(pa.float64(), 4)),
        pa.field("area", pa.int64()),
        pa.field("rle", pa.binary()),
        pa.field("source", pa.string()),
        pa.field("coverage", pa.float32()),
        pa.field("predicted_iou", pa.float32()),
        pa.field("stability", pa.float32()),
    ]
)


class RefineStage:
    """Annotations of every image, at its original size in the frame after EXIF rotation."""

    name = "refine"
    version = 2
    needs: tuple[str, ...]
    resources = Resources()
    arrays = False
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("points", pa.int32()),
            pa.field("annotations", pa.list_(ANNOTATION)),
        ]
    )

    def __init__(self, config: Config, vocabulary: Vocabulary, window: int, stride: int) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._window, self._stride = window, stride
        self._sam: Sam | None = None
        self.needs = ("dense", "propose") if config.refine.method == "automatic" else ("dense",)
        asks = config.refine.method in ("prompted", "guided")
        self._spec = zoo.resolve("sam", config.sam.model, config.sam.weights) if asks else None

    def inputs(self) -> dict[str, Any]:
        config, vocabulary = self._config, self._vocabulary
        inputs: dict[str, Any] = {
            "classes": list(vocabulary.names),
            "query_class": list(vocabulary.query_class),
            "thresholds": list(vocabulary.thresholds),
            "background": vocabulary.has_background,
            "logit_scale": config.dense.logit_scale,
            "prob_threshold": config.dense.prob_threshold,
            "area_threshold": config.dense.area_threshold,
            "prompt_denoising": config.dense.prompt_denoising,
            "refine": config.refine.model_dump(mode="json"),
        }
        if self._spec is not None:
            inputs["sam"] = self._spec.identity()
            inputs["precision"] = precision(config.run.precision, config.run.device)
        return inputs

    def setup(self, device: str) -> None:
        self._device = resolve_device(device)
        if self._spec is not None:
            self._sam = Sam.load(self._spec, self._device, precision(self._config.run.precision, device))

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        todo = []
        for row in rows:
            reasons = {name: reason for name in self.needs if (reason := upstream[name].failure(row.row))}
            if not reasons:
                todo.append(row)
            for name, reason in list(reasons.items())[:1]:
                yield failed(row, FailureCode.UPSTREAM, f"{name} failed: {reason}")
        for row, image in self._images(todo):
            yield self._answer(row, image, upstream)

    def _answer(self, row: ImageRow, image: Array | RowError | None, upstream: Mapping[str, Upstream]) -> RowResult:
        if isinstance(image, RowError):
            return failed(row, image.code, image.message)
        height, width = (upstream["dense"].values(row.row)[side] for side in ("height", "width"))
        if image is not None and image.shape[:2] != (height, width):
            now = f"{image.shape[1]} × {image.shape[0]}"
            return failed(
                row, FailureCode.CHANGED, f"{shown(row.path)} was {width} × {height} for CLIP and is now {now}"
            )
        [result] = split_on_failure(lambda one: [self._refine(row, one[0], upstream)], [image])
        return failed(row, result.code, result.message) if isinstance(result, RowError) else result

    def _images(self, rows: Sequence[ImageRow]) -> Iterator[tuple[ImageRow, Array | RowError | None]]:
        """The decoded images, or None for each where nothing will look at them."""
        run = self._config.run
        if self._sam is None and not self._config.refine.pamr:
            yield from ((row, None) for row in rows)
        else:
            yield from decode_ahead(rows, run.decode_threads, run.decode_bytes, read_limits(run))

    @torch.inference_mode()
    def _refine(self, row: ImageRow, image: Array | None, upstream: Mapping[str, Upstream]) -> RowResult:
        dense = upstream["dense"]
        values = dense.values(row.row)
        size = (values["height"], values["width"])
        labels, confidence = self._dense_map(dense, row.row, size, image)
        config = self._config.refine
        min_area = max(1, math.ceil(config.min_area * size[0] * size[1]))
        found = self._found(row.row, image, labels, confidence, min_area, upstream)
        kept = None if config.fallback == "none" else min_area if config.output == "instances" else 1
        owner, segments = assemble(
            labels, found.claims, found.mask_of, min_area, kept, by_trust=config.method == "guided"
        )
        return RowResult(
            row.row,
            row.key,
            values={
                "height": size[0],
                "width": size[1],
                "points": found.prompts,
                "annotations": self._annotations(owner, segments, labels, confidence),
            },
        )

    def _dense_map(self, dense: Upstream, row: int, size: tuple[int, int], image: Array | None) -> tuple[Array, Array]:
        values = dense.values(row)
        resized = (values["resized_height"], values["resized_width"])
        boxes = window_boxes(*resized, self._window, self._stride)
        logits = torch.from_numpy(dense.array(row, "logits")).to(self._device)
        scores = stitch(logits, boxes, resized)
        if self._config.refine.pamr and image is not None:
            small = cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR)
            pixels = torch.from_numpy(small).to(self._device).permute(2, 0, 1).float()
            scores = pamr(pixels, scores, self._config.refine.pamr)
        if self._config.dense.prompt_denoising:
            scores = denoise_prompts(scores[None], self._config.dense.prompt_denoising)[0]
        return label_map(
            scores,
            size,
            self._vocabulary,
            self._config.dense.logit_scale,
            self._config.dense.prob_threshold,
            self._config.dense.area_threshold,
        )

    def _found(
        self,
        row: int,
        image: Array | None,
        labels: Array,
        confidence: Array,
        min_area: int,
        upstream: Mapping[str, Upstream],
    ) -> Found:
        """The masks that the method finds."""
        settings, chunk = self._config.refine, self._config.run.point_chunk
        ignore = (0,) if self._vocabulary.has_background else ()
        if settings.method == "automatic":
            return voted(upstream["propose"].values(row)["proposals"], labels, settings.vote, ignore)
        if self._sam is None or image is None:
            return NOTHING
        if settings.method == "guided":
            return guided(self._sam, image, labels, confidence, settings, ignore, chunk)
        return prompted(self._sam, image, labels, settings, ignore, min_area, chunk)

    def _annotations(
        self, owner: Array, segments: Sequence[Segment], labels: Array, confidence: Array
    ) -> list[dict[str, Any]]:
        if self._config.refine.output == "semantic":
            owner, segments = _joined(owner, segments)
        if not segments:
            return []
        label_of = np.array([0, *(segment.label for segment in segments)], np.int16)
        area, agreeing, trust = _tally(owner, labels, confidence, label_of)
        fortran = np.asfortranarray(owner)
        annotations = []
        for segment in segments:
            k, claim = segment.index, segment.claim
            if area[k] == 0 or (segment.label == 0 and self._vocabulary.has_background):
                continue
            score = trust[k] / max(agreeing[k], 1) * (claim.predicted_iou if claim else 1.0)
            counts = rle.encode(fortran == k)
            annotations.append(
                {
                    "category": self._vocabulary.names[segment.label],
                    "score": float(min(max(score, 0.0), 1.0)),
                    "bbox": rle.bounding_box(counts, *owner.shape),
                    "area": int(area[k]),
                    "rle": counts,
                    "source": "sam" if claim else "dense",
                    "coverage": float(agreeing[k] / area[k]),
                    "predicted_iou": claim.predicted_iou if claim else None,
                    "stability": claim.stability if claim else None,
                }
            )
        return annotations


def _tally(owner: Array, labels: Array, confidence: Array, label_of: Array) -> tuple[Array, Array, Array]:
    """Per segment: pixels, pixels whose dense class is the segment's, and the dense probability summed over these."""
    ids = len(label_of)
    area, agreeing, trust = np.zeros(ids, np.int64), np.zeros(ids, np.int64), np.zeros(ids)
    step = max(1, STRIP_PIXELS // owner.shape[1])
    for top in range(0, owner.shape[0], step):
        part = owner[top : top + step]
        own = labels[top : top + step] == label_of[part]
        area += np.bincount(part.ravel(), minlength=ids)
        agreeing += np.bincount(part[own], minlength=ids)
        trust += np.bincount(part[own], weights=confidence[top : top + step][own], minlength=ids)
    return area, agreeing, trust


def _joined(owner: Array, segments: Sequence[Segment]) -> tuple[Array, list[Segment]]:
    """One segment per class; the claim that speaks for it is its strongest."""
    joined: dict[int, Segment] = {}
    index_of = np.zeros(len(segments) + 1, np.int32)
    for segment in segments:
        kept = joined.setdefault(segment.label, Segment(len(joined) + 1, segment.label, segment.claim))
        index_of[segment.index] = kept.index
    return index_of[owner], list(joined.values())
