"""Settle: make annotations of the masks that SAM 3 has found for each word alone. No image is read and no model runs.

Words do not know of each other, so one object may have masks of several words. Within a class the better mask stays.
Between classes every mask stays whole, and its confidence is lowered by that of its rivals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from ovseg_batch.io import rle
from ovseg_batch.methods.concepts import distinct_in_class, fused_labels, rival_scores
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.tiles import Box
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.methods.voting import MaskCandidate
from ovseg_batch.stages.answer import Answer, DenseMap, Painting, annotate
from ovseg_batch.stages.base import Stage, Upstream, done, ready
from ovseg_batch.stages.sam3.plan import SettlePlan
from ovseg_batch.types import ImageRow, RowResult, WordMask


class SettleStage(SettlePlan, Stage):
    """Selects masks of words, and makes annotations of them."""

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        for row in todo:
            values = upstream["sam3"].values(row.row)
            size = (values["height"], values["width"])
            if self._settings.output == "semantic":
                answer = self._semantic(row, upstream["sam3"], size)
            else:
                answer = self._instances(values["word_masks"], size)
            annotations = annotate(answer, self._vocabulary, self._painting(size))
            yield done(row, {"height": size[0], "width": size[1], "annotations": annotations})

    def _painting(self, size: tuple[int, int]) -> Painting:
        least = max(1, math.ceil(self._settings.min_area * size[0] * size[1]))
        if self._settings.output == "semantic":
            return Painting(least, 1, joined=True)
        return Painting(least, by_score=True, paint=self._paint)

    def _instances(self, found: Sequence[WordMask], size: tuple[int, int]) -> Answer:
        """Return the masks that stay, each with its score, and its score without its best rival's as margin."""
        settings, vocabulary = self._settings, self._vocabulary
        of_class = [vocabulary.query_class[one.query] for one in found]
        scores, counts = np.array([one.score for one in found]), [one.rle for one in found]
        overlap, inside = rle.overlaps(counts, *size)
        sure = scores * (1 - rival_scores(scores, of_class, overlap))
        least = np.array([max(settings.threshold, vocabulary.thresholds[label]) for label in of_class])
        able = np.flatnonzero(scores > least)
        passed = distinct_in_class(
            *(scores[able], [of_class[k] for k in able]),
            *(overlap[np.ix_(able, able)], inside[np.ix_(able, able)]),
            *(settings.nms, settings.contained),
        )
        kept = able[passed].tolist()
        candidates = [
            MaskCandidate(of_class[k], found[k].area, None, None, None, float(scores[k]), margin=float(sure[k]))
            for k in kept
        ]
        return Answer(
            size,
            candidates,
            mask_of=lambda index: rle.decode_placed(counts[kept[index]], *size),
            with_sam=False,
            counts_of=lambda index: counts[kept[index]],
        )

    def _semantic(self, row: ImageRow, kept: Upstream, size: tuple[int, int]) -> Answer:
        """Return the class of every pixel, from the fused maps of the words that are present."""
        values, vocabulary = kept.values(row.row), self._vocabulary
        present = [word["query"] for word in values["words"] if word["found"]]
        labels = np.full(size, UNLABELLED, np.int16)
        best = lead = np.zeros(size, np.float32)
        if present:
            maps = kept.pixels(row.row, "maps", (len(present), None, None))
            least = [max(self._settings.soft, threshold) for threshold in vocabulary.thresholds]
            labels, best, lead = fused_labels(maps, [vocabulary.query_class[k] for k in present], least, size)
        ignore = (0,) if vocabulary.has_background else ()
        dense = DenseMap(labels, best, lead, _no_probabilities, ignore, None)
        return Answer(size, [], _no_mask, dense, with_sam=False)


def _no_probabilities(box: Box, size: tuple[int, int]) -> Tensor:
    raise NotImplementedError("fused maps are no probabilities of all classes")


def _no_mask(index: int) -> PlacedMask:
    raise IndexError(index)
