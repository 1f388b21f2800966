"""Classify: score every proposal for every word, and keep the masks of present classes with reasons.

No image is read: suppression, denoising, temperature, size penalty, thresholds, NMS and top-K use the features that
`embed` has stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ovseg_batch.errors import FailureCode
from ovseg_batch.io import rle
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
from ovseg_batch.methods.voting import MaskCandidate
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import resolve_device
from ovseg_batch.stages.answer import Answer, Painting, annotate
from ovseg_batch.stages.base import Stage, Upstream, done, failed, ready
from ovseg_batch.stages.plans import ClassifyPlan
from ovseg_batch.stages.text import text_features
from ovseg_batch.types import Annotation, ImageRow, Proposal, RowResult
from ovseg_batch.types.arrays import Floats, Numbers


class ClassifyStage(ClassifyPlan, Stage):
    """Selects proposals by their similarity to the words."""

    def setup(self, device: str) -> None:
        clip = DenseClip.load(self._spec, resolve_device(device), "fp32")

        def features(texts: Sequence[str]) -> Floats:
            if not texts:
                return np.zeros((0, 1), np.float32)
            found: Floats = text_features(clip, self._spec, texts, self._templates).numpy()
            return found

        self._words = features(self._vocabulary.queries)
        self._nothing = features(self._settings.background)
        self._mistaken = [features(words) for words in self._confusers]

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        for row in todo:
            try:
                yield self._classify(row, upstream)
            except ValueError as error:  # of the row's own prompts
                yield failed(row, FailureCode.MODEL, str(error))

    def _classify(self, row: ImageRow, upstream: Mapping[str, Upstream]) -> RowResult:
        values = upstream["propose"].values(row.row)
        size = (values["height"], values["width"])
        least = self._settings.min_area * size[0] * size[1]
        kept = [k for k, proposal in enumerate(values["proposals"]) if proposal.area >= least]
        annotations = []
        if kept:
            scales = len(self._settings.scales) if self._settings.scorer == "crops" else 1
            shape = (scales, len(values["proposals"]), self._words.shape[1])
            features = upstream["embed"].array(row.row, "features", shape)[:, kept].astype(np.float32)
            annotations = self._annotations(row, features, [values["proposals"][k] for k in kept], size)
        return done(row, {"height": size[0], "width": size[1], "annotations": annotations})

    def _scores(self, row: ImageRow, features: Floats, proposals: Sequence[Proposal], pixels: int) -> Numbers:
        """Return the score of each mask for each class: (M, C) in [0, 1]."""
        settings, vocabulary = self._settings, self._vocabulary
        weights = settings.weights if len(features) > 1 else (1.0,)

        def likeness(words: Floats) -> Numbers:
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
        kept[[vocabulary.channel_class[k] for k in vocabulary.left_out(row.extra.get("prompts"))]] = False
        if settings.denoising is not None:
            kept &= alike.max(axis=0) >= adaptive_floor(alike[:, kept], settings.denoising)
            kept[0] |= vocabulary.pooled  # the background cannot be absent
        if not kept.any():
            return np.zeros_like(alike)
        share = np.array([proposal.area for proposal in proposals]) / pixels
        penalty = size_penalty(share) if settings.size_penalty else np.ones(len(share))
        believed: Numbers = probabilities(alike, kept, settings.temperature) * penalty[:, None]
        return believed

    def _annotations(
        self, row: ImageRow, features: Floats, proposals: Sequence[Proposal], size: tuple[int, int]
    ) -> list[Annotation]:
        settings, vocabulary = self._settings, self._vocabulary
        believed = self._scores(row, features, proposals, size[0] * size[1])
        rated = np.clip([proposal.predicted_iou for proposal in proposals], 0, 1)
        large = np.array([proposal.area for proposal in proposals]) >= settings.large * size[0] * size[1]
        floor = np.where(large, settings.threshold_large, settings.threshold_small)
        won, ordered = believed.argmax(axis=1), np.sort(believed, axis=1)
        lead = ordered[:, -1] - (ordered[:, -2] if ordered.shape[1] > 1 else 0.0)
        counts = [proposal.rle for proposal in proposals]
        overlap, inside = rle.overlaps(counts, *size)
        candidates: list[MaskCandidate] = []
        masks: list[bytes] = []
        for label in range(len(vocabulary.names)):
            score = believed[:, label] * rated
            least = np.maximum(floor, vocabulary.thresholds[label])
            able = (won == label) & (believed[:, label] >= least)
            passed = [k for k in distinct(np.where(able, score, -1.0), overlap, settings.nms) if able[k]]
            choice = self._choose(label, passed, score, inside)
            for k in choice.indices:
                rating = float(rated[k]), proposals[k].stability, float(score[k])
                candidates.append(MaskCandidate(label, proposals[k].area, None, *rating, choice.reason, float(lead[k])))
                masks.append(counts[k])
        answer = Answer(size, candidates, lambda index: rle.decode_placed(masks[index], *size))
        least_area = max(1, round(settings.min_area * size[0] * size[1]))
        return annotate(answer, vocabulary, Painting(least_area, by_score=True, paint=self._paint))

    def _choose(self, label: int, passed: Sequence[int], score: Numbers, inside: Numbers) -> Choice:
        top_k = self._settings.top_k
        if top_k == "all":
            return Choice(list(passed), "every mask above the threshold")
        if top_k == "adaptive":
            pairs = zip(self._vocabulary.queries, self._vocabulary.query_class, strict=True)
            words = [query for query, owner in pairs if owner == label]
            return choose_adaptively(words, passed, score, inside)
        return choose_top(passed, top_k)
