"""Classify boxes: score every mask of `detect` for every word, and keep those above the threshold.

No image is read. Words do not compete: the masks of a label are the same whatever other labels are searched for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ovseg_batch.errors import FailureCode
from ovseg_batch.io import rle
from ovseg_batch.io.text_cache import text_embeddings
from ovseg_batch.io.user_cache import cache_folder
from ovseg_batch.methods.detection import class_scores, word_scores
from ovseg_batch.methods.voting import MaskCandidate
from ovseg_batch.models.owl import OwlText
from ovseg_batch.models.zoo import ModelSpec
from ovseg_batch.stages.answer import Answer, Painting, annotate
from ovseg_batch.stages.base import Stage, Upstream, done, failed, ready
from ovseg_batch.stages.detect.plan import ClassifyBoxesPlan, DetectPlan
from ovseg_batch.types import Annotation, ImageRow, Proposal, RowResult
from ovseg_batch.types.arrays import Floats
from ovseg_batch.workdir.store import fingerprint

TEXT_VERSION = 1  # of the embeddings' last bits


class ClassifyBoxesStage(ClassifyBoxesPlan, Stage):
    """Selects masks of boxes by their scores for the words."""

    def setup(self, device: str) -> None:
        self._words = box_words(self._spec, self._vocabulary.queries, self._settings.templates)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        for row in todo:
            try:
                yield self._classify(row, upstream[DetectPlan.name])
            except ValueError as error:  # of the row's own prompts
                yield failed(row, FailureCode.MODEL, str(error))

    def _classify(self, row: ImageRow, detected: Upstream) -> RowResult:
        values = detected.values(row.row)
        size, proposals = (values["height"], values["width"]), values["proposals"]
        annotations: list[Annotation] = []
        if proposals:
            embeddings = detected.array(row.row, "embeddings", (len(proposals), self._spec.width))
            calibration = detected.array(row.row, "calibration", (len(proposals), 2))
            scores = word_scores(embeddings, calibration.astype(np.float32), self._words)
            annotations = self._annotations(row, scores, proposals, size)
        return done(row, {"height": size[0], "width": size[1], "annotations": annotations})

    def _annotations(
        self, row: ImageRow, scores: Floats, proposals: Sequence[Proposal], size: tuple[int, int]
    ) -> list[Annotation]:
        """Return the annotations of an image, from the scores (N, Q) of its masks for the words."""
        settings, vocabulary = self._settings, self._vocabulary
        believed = class_scores(scores, vocabulary.query_class, len(vocabulary.names))
        least_area = max(1, round(settings.min_area * size[0] * size[1]))
        able = believed >= np.maximum(settings.threshold, vocabulary.thresholds)
        able &= np.array([proposal.area >= least_area for proposal in proposals])[:, None]
        able[:, vocabulary.left_out(row.extra.get("prompts"))] = False
        candidates: list[MaskCandidate] = []
        masks: list[bytes] = []
        for label in range(len(vocabulary.names)):
            ranked = [k for k in np.argsort(-believed[:, label], kind="stable").tolist() if able[k, label]]
            for kept in rle.distinct([proposals[k].rle for k in ranked], *size, settings.nms):
                proposal = proposals[ranked[kept]]
                candidates.append(_candidate(label, proposal, float(believed[ranked[kept], label])))
                masks.append(proposal.rle)
        answer = Answer(
            size, candidates, lambda index: rle.decode_placed(masks[index], *size), counts_of=masks.__getitem__
        )
        return annotate(answer, vocabulary, Painting(least_area, by_score=True, paint=self._paint))


def _candidate(label: int, proposal: Proposal, score: float) -> MaskCandidate:
    """Return a mask of a class. Its margin is the score, because no other word competes with the class."""
    rated = min(max(proposal.predicted_iou, 0.0), 1.0)
    return MaskCandidate(label, proposal.area, None, rated, proposal.stability, score, margin=score)


def box_words(spec: ModelSpec, queries: Sequence[str], templates: Sequence[str]) -> Floats:
    """Return (Q, D) float32: the mean embedding of each query over the templates. The text tower is loaded if needed.

    Raises:
        OvsegError: as `OwlText.load`.
    """
    loaded = functools.cache(lambda: OwlText.load(spec))
    key = {"version": TEXT_VERSION, "owl": spec.identity(), "templates": list(templates)}
    folder = cache_folder()
    found = text_embeddings(queries, templates, lambda prompts: loaded().encode(prompts), fingerprint(key), folder)
    words: Floats = np.stack([found[query].mean(axis=0) for query in queries])
    return words
