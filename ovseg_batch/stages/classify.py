"""Classify: every proposal is held against every word, and the masks that speak for a word are kept with their reasons.

Two scorers: crops, each mask's own picture through CLIP at three sizes; and mask tokens, all masks of an image in one
forward. What follows is the same for both: suppression, denoising, temperature, size penalty, thresholds, NMS, top-K.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch

from ovseg_batch.config import Config
from ovseg_batch.errors import FailureCode, RowError, UsageError
from ovseg_batch.io import rle
from ovseg_batch.io.images import decode_ahead
from ovseg_batch.io.remote import shown
from ovseg_batch.methods.crops import isolated_crop, resized_crop
from ovseg_batch.methods.selection import (
    Choice,
    adaptive_floor,
    choose_adaptively,
    choose_top,
    distinct,
    probabilities,
    size_penalty,
    suppressed,
)
from ovseg_batch.methods.vocabulary import UNLABELLED, Vocabulary
from ovseg_batch.methods.voting import Claim, assemble
from ovseg_batch.models import zoo
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import precision, resolve_device
from ovseg_batch.models.mask_tokens import MaskTokens, load_tuned, touched_patches
from ovseg_batch.models.weights import file_hash
from ovseg_batch.stages.annotations import ANNOTATION, annotation_line
from ovseg_batch.stages.base import Resources, Upstream, failed, read_limits, ready, split_on_failure
from ovseg_batch.stages.text import text_features
from ovseg_batch.types import ImageRow, RowResult

Array = np.ndarray[Any, Any]


class ClassifyStage:
    """Annotations of every image from its proposals, at its original size in the frame after EXIF rotation."""

    name = "classify"
    version = 1
    needs: tuple[str, ...] = ("propose",)
    resources = Resources()
    arrays = False
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("proposals", pa.int32()),
            pa.field("forwards", pa.int32()),  # images through CLIP
            pa.field("annotations", pa.list_(ANNOTATION)),
        ]
    )

    def __init__(self, config: Config, vocabulary: Vocabulary, templates: Sequence[str]) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._templates = tuple(templates)
        self._spec = zoo.resolve("clip", config.clip.model, config.clip.weights)
        tuned = config.classify.tuned
        if tuned and not Path(tuned).is_file():
            raise UsageError(f"classify.tuned: there is no file {tuned}. scripts/tune_masq.py makes one.")
        confusers = {label.name: label.confusers for label in config.labels}
        self._confusers = [confusers.get(name, ()) for name in vocabulary.names]

    def inputs(self) -> dict[str, Any]:
        config, vocabulary, run = self._config, self._vocabulary, self._config.run
        tuned = config.classify.tuned
        return {
            "clip": self._spec.identity(),
            "precision": precision(run.precision, run.device),
            "templates": list(self._templates),
            "classes": list(vocabulary.names),
            "queries": list(vocabulary.queries),
            "query_class": list(vocabulary.query_class),
            "thresholds": list(vocabulary.thresholds),
            "background": vocabulary.has_background,
            "confusers": [list(words) for words in self._confusers],
            "classify": {**config.classify.model_dump(mode="json"), "tuned": tuned and file_hash(tuned)},
            "max_pixels": run.max_pixels,
            "max_file_bytes": run.max_file_bytes,
        }

    def setup(self, device: str) -> None:
        settings = self._config.classify
        self._device = resolve_device(device)
        self._clip = DenseClip.load(self._spec, self._device, precision(self._config.run.precision, device))
        self._tokens: MaskTokens | None = None
        if settings.scorer == "mask-tokens":
            visual = self._clip.visual
            self._tokens = load_tuned(visual, settings.tuned) if settings.tuned else MaskTokens(visual)
        self._words = self._features(self._vocabulary.queries)
        self._nothing = self._features(settings.background)
        self._mistaken = [self._features(words) for words in self._confusers]

    def _features(self, texts: Sequence[str]) -> Array:
        if not texts:
            return np.zeros((0, 1), np.float32)
        features: Array = text_features(self._clip, self._spec, texts, self._templates).numpy()
        return features

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        run = self._config.run
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        for row, image in decode_ahead(todo, run.decode_threads, run.decode_bytes, read_limits(run)):
            if isinstance(image, RowError):
                yield failed(row, image.code, image.message)
                continue
            values = upstream["propose"].values(row.row)
            if image.shape[:2] != (values["height"], values["width"]):
                was, now = f"{values['width']} × {values['height']}", f"{image.shape[1]} × {image.shape[0]}"
                message = f"{shown(row.path)} was {was} for SAM2 and is now {now}"
                yield failed(row, FailureCode.CHANGED, message)
                continue
            [found] = split_on_failure(functools.partial(self._one, row, values), [image])
            yield failed(row, found.code, found.message) if isinstance(found, RowError) else found

    def _one(self, row: ImageRow, values: Mapping[str, Any], images: Sequence[Array]) -> list[RowResult]:
        return [self._classify(row, images[0], values)]

    def _classify(self, row: ImageRow, image: Array, values: Mapping[str, Any]) -> RowResult:
        size = (image.shape[0], image.shape[1])
        least = self._config.classify.min_area * size[0] * size[1]
        proposals = [proposal for proposal in values["proposals"] if proposal["area"] >= least]
        forwards, annotations = 0, []
        if proposals:
            features, forwards = self._mask_features(image, proposals)
            annotations = self._annotations(row, features, proposals, size)
        found = {"proposals": len(proposals), "forwards": forwards, "annotations": annotations}
        return RowResult(row.row, row.key, {"height": size[0], "width": size[1], **found})

    @torch.inference_mode()
    def _mask_features(self, image: Array, proposals: Sequence[Mapping[str, Any]]) -> tuple[Array, int]:
        """(scales, M, D) of every mask, and how many pictures went through CLIP."""
        masks = (rle.decode(proposal["rle"], *image.shape[:2]) for proposal in proposals)
        if self._tokens is not None:
            return self._by_tokens(self._tokens, image, masks), 1
        features = self._by_crops(image, masks)
        return features, features.shape[0] * features.shape[1]

    def _by_tokens(self, tokens: MaskTokens, image: Array, masks: Iterable[Array]) -> Array:
        side = self._clip.image_size
        small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        batch = self._clip.normalise(torch.from_numpy(small)[None].to(self._device))
        grid = (side // self._clip.patch, side // self._clip.patch)
        touched = torch.cat([touched_patches(torch.from_numpy(mask)[None], grid) for mask in masks])
        features: Array = self._clip.mask_features(tokens, batch, touched[None].to(self._device)).cpu().numpy()
        return features

    def _by_crops(self, image: Array, masks: Iterable[Array]) -> Array:
        settings, patch = self._config.classify, self._clip.patch
        sides = [max(1, round(scale * self._clip.image_size / patch)) * patch for scale in settings.scales]
        pictures: list[list[Array]] = [[] for _ in sides]
        for mask in masks:  # a crop may be as large as the image: one at a time
            crop = isolated_crop(image, mask, self._clip.mean_colour, settings.outside)
            for side, of_side in zip(sides, pictures, strict=True):
                of_side.append(resized_crop(crop, side))
        return np.stack([self._encoded(of_side) for of_side in pictures])

    def _encoded(self, pictures: Sequence[Array]) -> Array:
        """(M, D) of pictures of one size."""
        step = self._config.run.batch_size
        batches = (torch.from_numpy(np.stack(pictures[k : k + step])) for k in range(0, len(pictures), step))
        features = [self._clip.image_features(self._clip.normalise(batch.to(self._device))) for batch in batches]
        encoded: Array = torch.cat(features).cpu().numpy()
        return encoded

    def _scores(self, row: ImageRow, features: Array, proposals: Sequence[Mapping[str, Any]], pixels: int) -> Array:
        """How far each mask is believed to show each class: (M, C) in [0, 1]."""
        settings, vocabulary = self._config.classify, self._vocabulary
        weights = settings.weights if len(features) > 1 else (1.0,)

        def likeness(words: Array) -> Array:
            return np.tensordot(np.array(weights), features @ words.T, axes=1)

        of_query = likeness(self._words)
        owner = np.array(vocabulary.query_class)
        alike = np.stack([of_query[:, owner == k].max(axis=1) for k in range(len(vocabulary.names))], axis=1)
        nothing = likeness(self._nothing).max(axis=1) if len(self._nothing) else np.zeros(len(alike))
        mistaken = np.stack(
            [likeness(words).max(axis=1) if len(words) else np.zeros(len(alike)) for words in self._mistaken], axis=1
        )
        alike = suppressed(alike, nothing, mistaken, settings.background_weight, settings.confuser_weight)
        kept = np.ones(len(vocabulary.names), bool)
        kept[[vocabulary.query_class[query] for query in vocabulary.left_out(row.extra.get("prompts"))]] = False
        if settings.denoising is not None:
            kept &= alike.max(axis=0) >= adaptive_floor(alike[:, kept], settings.denoising)
        if not kept.any():
            return np.zeros_like(alike)
        share = np.array([proposal["area"] for proposal in proposals]) / pixels
        penalty = size_penalty(share) if settings.size_penalty else np.ones(len(share))
        believed: Array = probabilities(alike, kept, settings.temperature) * penalty[:, None]
        return believed

    def _annotations(
        self, row: ImageRow, features: Array, proposals: Sequence[Mapping[str, Any]], size: tuple[int, int]
    ) -> list[dict[str, Any]]:
        settings, vocabulary = self._config.classify, self._vocabulary
        believed = self._scores(row, features, proposals, size[0] * size[1])
        rated = np.clip([proposal["predicted_iou"] for proposal in proposals], 0, 1)
        large = np.array([proposal["area"] for proposal in proposals]) >= settings.large * size[0] * size[1]
        floor = np.where(large, settings.threshold_large, settings.threshold_small)
        won = believed.argmax(axis=1)
        counts = [proposal["rle"] for proposal in proposals]
        overlap, inside = rle.overlaps(counts, *size)
        claims: list[Claim] = []
        masks: list[bytes] = []
        for label in range(len(vocabulary.names)):
            score = believed[:, label] * rated
            least = np.maximum(floor, vocabulary.thresholds[label])
            able = (won == label) & (believed[:, label] >= least)
            candidates = [k for k in distinct(np.where(able, score, -1.0), overlap, settings.nms) if able[k]]
            choice = self._choose(label, candidates, score, inside)
            for k in choice.indices:
                steady = float(proposals[k]["stability"])
                area, trust = int(proposals[k]["area"]), float(score[k])
                claims.append(Claim(label, area, None, float(rated[k]), steady, trust, choice.reason))
                masks.append(counts[k])
        nothing = np.full(size, UNLABELLED, np.int16)
        least_area = max(1, round(settings.min_area * size[0] * size[1]))
        owner, segments = assemble(
            nothing, claims, lambda index: rle.decode(masks[index], *size), least_area, None, by_trust=True
        )
        fortran = np.asfortranarray(owner)
        return [
            annotation_line(fortran, segment, vocabulary.names[segment.label], segment.claim.trust, None)
            for segment in segments
            if segment.claim and not (segment.label == 0 and vocabulary.has_background)
        ]

    def _choose(self, label: int, candidates: Sequence[int], score: Array, inside: Array) -> Choice:
        top_k = self._config.classify.top_k
        if top_k == "all":
            return Choice(list(candidates), "every mask above the threshold")
        if top_k == "adaptive":
            pairs = zip(self._vocabulary.queries, self._vocabulary.query_class, strict=True)
            words = [query for query, owner in pairs if owner == label]
            return choose_adaptively(words, candidates, score, inside)
        return choose_top(candidates, top_k)
