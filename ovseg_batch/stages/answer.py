"""The answer of a method for one image, and its conversion to annotations.

`annotate` is the only place that assigns pixels to masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from ovseg_batch.io import rle
from ovseg_batch.methods.confidence import mask_confidence
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.presence import Presence
from ovseg_batch.methods.runs import RunMap
from ovseg_batch.methods.tiles import Box
from ovseg_batch.methods.vocabulary import UNLABELLED, Vocabulary
from ovseg_batch.methods.voting import MaskCandidate, Segment, assemble
from ovseg_batch.types import Annotation, PromptOutcome
from ovseg_batch.types.arrays import AnyArray, ClassMap, Doubles, Indices, Narrow, Numbers

#: (H, W) owner of each pixel, segments → the segments, some with another class
Relabel = Callable[[Narrow, list[Segment]], list[Segment]]


@dataclass(frozen=True, slots=True)
class DenseMap:
    """The dense prediction of an image.

    Attributes:
        labels: (H, W) int16 class of each pixel, `UNLABELLED` where none.
        confidence: (H, W) probability of the class.
        margin: (H, W) lead of that probability over the next.
        probabilities: a box (x0, y0, x1, y1) in pixels and a size (h, w) → (C, h, w) float32.
        ignore: classes without masks.
        presence: sure pixels of each class. None: every class counts as present.
    """

    labels: ClassMap
    confidence: Numbers
    margin: Numbers
    probabilities: Callable[[Box, tuple[int, int]], Tensor]
    ignore: tuple[int, ...]
    presence: Presence | None

    def within(self, place: tuple[slice, slice]) -> DenseMap:
        """Return the map in a box, given as its rows and columns. `probabilities` remains that of the image."""
        presence = self.presence
        return replace(
            self,
            labels=self.labels[place],
            confidence=self.confidence[place],
            margin=self.margin[place],
            presence=presence and replace(presence, labels=presence.labels[place], clear=presence.clear[place]),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a method for one image.

    Attributes:
        size: (H, W) of the image.
        candidates: proposed masks.
        mask_of: index of a candidate → its mask.
        dense: class of every pixel. None: the method classifies only masks.
        with_sam: whether the run uses SAM2, whose predicted IoU the confidence then includes.
        counts_of: index of a candidate → its mask, run-length encoded. Where masks overlap and are ranked by score,
            these masks become annotations without being painted. None: masks are painted.
    """

    size: tuple[int, int]
    candidates: Sequence[MaskCandidate]
    mask_of: Callable[[int], PlacedMask]
    dense: DenseMap | None = None
    with_sam: bool = True
    counts_of: Callable[[int], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Painting:
    """Parameters of the assignment of pixels to masks.

    Attributes:
        min_area: least pixels of a mask.
        dense_min_area: least pixels of a piece of the dense map outside of all masks. None: such pieces are dropped.
        by_score: paint the mask with the highest score last, otherwise the smallest.
        joined: make one mask for each class.
        paint: `exclusive`: a pixel has one owner at most. `overlapping`: each candidate keeps all of its pixels.
    """

    min_area: int
    dense_min_area: int | None = None
    by_score: bool = False
    joined: bool = False
    paint: Literal["exclusive", "overlapping"] = "exclusive"


def annotate(answer: Answer, vocabulary: Vocabulary, painting: Painting) -> list[Annotation]:
    """Return the annotations of an image, without those of the background.

    Args:
        answer: answer of the method.
        vocabulary: its classes.
        painting: how pixels are assigned.
    """
    overlapping = painting.paint == "overlapping"
    if overlapping and painting.by_score and answer.counts_of is not None:
        return _unpainted(answer, vocabulary, painting.min_area, answer.counts_of)
    return annotate_with_outcomes(answer, vocabulary, painting)[0]


def annotate_with_outcomes(
    answer: Answer, vocabulary: Vocabulary, painting: Painting, relabel: Relabel | None = None
) -> tuple[list[Annotation], list[PromptOutcome]]:
    """Paint the candidates, and return the annotations as `annotate` does, and what became of each candidate.

    Args:
        answer, vocabulary, painting: as in `annotate`.
        relabel: changes the classes of segments before they become annotations.
    """
    owner, segments, small = _painted(answer, painting)
    if relabel is not None:
        segments = relabel(owner.pixels(), segments)
    outcomes = _outcomes(len(answer.candidates), segments, small, vocabulary)
    if painting.joined:
        owner, segments = _joined(owner, segments)
    return _annotated(owner, segments, answer, vocabulary, painting.paint == "overlapping"), outcomes


def _outcomes(
    count: int, segments: Sequence[Segment], small: Sequence[int], vocabulary: Vocabulary
) -> list[PromptOutcome]:
    """Return what became of each candidate, from the segments of the assembled map."""
    found = [PromptOutcome.COVERED] * count
    for index in small:
        found[index] = PromptOutcome.SMALL
    for segment in segments:
        background = segment.label == 0 and vocabulary.has_background
        for place, index in enumerate(segment.drawn_by):
            found[index] = PromptOutcome.MERGED if place else PromptOutcome.KEPT
            if background:
                found[index] = PromptOutcome.BACKGROUND
    return found


def _annotated(
    owner: RunMap, segments: Sequence[Segment], answer: Answer, vocabulary: Vocabulary, overlapping: bool
) -> list[Annotation]:
    """Return the annotations of the segments, without those of the background."""
    if not segments:
        return []
    outlines = rle.encode_regions(owner.pixels())
    if overlapping:
        outlines = {one.index: _whole(one, outlines.get(one.index), answer) for one in segments}
    measured = _measure(owner, segments, outlines, answer, overlapping)
    return [
        make_annotation(
            outlines[segment.index],
            answer.size,
            segment.candidate,
            vocabulary.names[segment.label],
            one.score,
            one.coverage,
            one.margin,
            answer.with_sam,
            one.clear,
        )
        for segment, one in zip(segments, measured, strict=True)
        if segment.index in outlines and not (segment.label == 0 and vocabulary.has_background)
    ]


def _unpainted(
    answer: Answer, vocabulary: Vocabulary, min_area: int, counts_of: Callable[[int], bytes]
) -> list[Annotation]:
    """Return the annotations of candidates that keep all of their pixels, in the order of painting."""
    found = []
    for index in sorted(range(len(answer.candidates)), key=lambda k: (answer.candidates[k].score, k)):
        one = answer.candidates[index]
        if one.area >= min_area and not (one.label == 0 and vocabulary.has_background):
            rated = (one.score, None, one.margin, answer.with_sam)
            found.append(make_annotation(counts_of(index), answer.size, one, vocabulary.names[one.label], *rated))
    return found


def _painted(answer: Answer, painting: Painting) -> tuple[RunMap, list[Segment], list[int]]:
    """Return the segment of each pixel, the segments and the candidates that are too small, as `assemble` does."""
    dense = answer.dense
    labels = np.full(answer.size, UNLABELLED, np.int16) if dense is None else dense.labels
    return assemble(
        labels,
        answer.candidates,
        answer.mask_of,
        painting.min_area,
        painting.dense_min_area,
        painting.by_score,
        None if dense is None else dense.presence,
        covered=painting.paint == "overlapping",
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """The measured values of a segment for its annotation."""

    score: float
    coverage: float | None
    margin: float
    clear: float = 1.0


def _measure(
    owner: RunMap, segments: Sequence[Segment], outlines: Mapping[int, bytes], answer: Answer, overlapping: bool
) -> list[_Measured]:
    """Return the measured values of segments, from all of their pixels (`outlines`) where masks may overlap."""
    if answer.dense is None:
        return _of_candidates(segments)
    if overlapping:
        return [_of_whole(one, outlines[one.index], answer.size, answer.dense) for one in segments]
    return _of_dense(owner, segments, answer.dense)


def _of_candidates(segments: Sequence[Segment]) -> list[_Measured]:
    """Return the measured values of segments without a dense map."""
    drawn = [segment.candidate for segment in segments if segment.candidate is not None]
    return [_Measured(one.score, None, one.margin) for one in drawn]


def _of_dense(owner: RunMap, segments: Sequence[Segment], dense: DenseMap) -> list[_Measured]:
    """Return the measured values of segments from their pixels in the dense map.

    The score is the mean probability of the class over the pixels that carry it, times the predicted IoU.
    """
    label_of = np.array([0, *(segment.label for segment in segments)], np.int16)
    area, agreeing, probability, lead, clear = _sums(owner, dense, label_of)
    found = []
    for segment in segments:
        k, candidate = segment.index, segment.candidate
        pixels = max(area[k], 1)
        score, margin = segment.renamed or (probability[k] / max(agreeing[k], 1), float(lead[k] / pixels))
        if candidate is not None and candidate.predicted_iou is not None:
            score *= candidate.predicted_iou
        shown = 1.0 if segment.renamed else float(clear[k] / pixels)
        found.append(_Measured(score, float(agreeing[k] / pixels), margin, shown))
    return found


def _whole(segment: Segment, visible: bytes | None, answer: Answer) -> bytes:
    """Return the counts of all pixels of a segment: those that no other mask covers, and those of its candidates."""
    drawn = [rle.encode_placed(answer.mask_of(index), *answer.size) for index in segment.drawn_by]
    return rle.merged([*drawn, *([] if visible is None else [visible])], *answer.size)


def _of_whole(segment: Segment, counts: bytes, size: tuple[int, int], dense: DenseMap) -> _Measured:
    """Return the figures of a segment from all of its pixels, whether other masks cover them or not."""
    placed = rle.decode_placed(counts, *size)
    seen = dense.within(placed.place)
    alone = RunMap.of(np.ascontiguousarray(placed.pixels).view(np.uint8), seen.labels)
    [measured] = _of_dense(alone, [replace(segment, index=1)], seen)
    return measured


def _sums(owner: RunMap, dense: DenseMap, label_of: ClassMap) -> tuple[Indices, Indices, Doubles, Doubles, Doubles]:
    """Sum the dense map over each segment. In each run of `owner`, the class is constant.

    Returns:
        Pixels, those whose dense class is the segment's, the probability summed over these, the lead summed over all,
        and those of the segment's class that exceed the background by far (all pixels where presence does not count).
    """
    runs, segment = owner.runs, owner.values
    agrees = dense.labels.ravel()[runs.starts] == label_of[segment]

    def per_segment(of_runs: AnyArray) -> Doubles:
        return np.asarray(np.bincount(segment, weights=of_runs, minlength=len(label_of)), np.float64)

    area, agreeing = per_segment(runs.lengths), per_segment(runs.lengths * agrees)
    probability, lead = per_segment(runs.sums(dense.confidence) * agrees), per_segment(runs.sums(dense.margin))
    clear = area if dense.presence is None else per_segment(runs.sums(dense.presence.clear) * agrees)
    return area.astype(np.int64), agreeing.astype(np.int64), probability, lead, clear


def _joined(owner: RunMap, segments: Sequence[Segment]) -> tuple[RunMap, list[Segment]]:
    """Join the segments of each class. The first candidate of a class becomes that of the joined segment."""
    joined: dict[int, Segment] = {}
    index_of = np.zeros(len(segments) + 1, np.int32)
    for segment in segments:
        kept = joined.setdefault(segment.label, Segment(len(joined) + 1, segment.label, segment.candidate))
        index_of[segment.index] = kept.index
    return replace(owner, values=index_of[owner.values]), list(joined.values())


def make_annotation(
    counts: bytes,
    size: tuple[int, int],
    candidate: MaskCandidate | None,
    category: str,
    score: float,
    coverage: float | None,
    margin: float,
    with_sam: bool,
    clear: float = 1.0,
) -> Annotation:
    """Return one segment of an assembled map as an annotation.

    Args:
        counts: its pixels, run-length encoded.
        size: (H, W).
        candidate: the mask that drew it; None: the dense map did.
        score, coverage, margin: as in `Annotation`; the score is brought into [0, 1].
        with_sam: whether the run uses SAM2.
        clear: share of its pixels that exceed the background by far.
    """
    return Annotation(
        category=category,
        score=float(min(max(score, 0.0), 1.0)),
        bbox=tuple(rle.bounding_box(counts, *size)),
        area=rle.area(counts, *size),
        rle=counts,
        source="sam" if candidate else "dense",
        confidence=mask_confidence(margin, candidate.predicted_iou if candidate else None, with_sam, clear),
        margin=margin,
        coverage=coverage,
        predicted_iou=candidate.predicted_iou if candidate else None,
        stability=candidate.stability if candidate else None,
        reason=candidate.reason if candidate else None,
    )
