"""The vote between SAM2's masks and the dense label map, and the map of instances that follows from it.

A mask is kept for the class of its prompt when at least 60 % of its pixels carry that class in the dense map (García
García 2025, section 3.1.6). With `vote` 0 it takes the class that most of its pixels carry, without a threshold
(CorrCLIP). A soft vote takes the class of the highest mean probability in it. Kept masks are painted from the largest
to the smallest, or by score. Two masks of one object become one instance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ovseg_batch.methods.components import Components, connected_components
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.presence import Presence
from ovseg_batch.methods.runs import RunMap, narrow_dtype
from ovseg_batch.methods.tiles import Box
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.types.arrays import ClassMap, Indices, Narrow

GROUP = 128  # machine words counted together, a byte for each of a word's eight flags: at most 255
SAME_OBJECT = 0.8  # a mask with this share of its pixels in a larger one of its class shows the same object


@dataclass(frozen=True, slots=True)
class Vote:
    """How the dense map decides the class of a mask.

    Attributes:
        by: `prompt`: the class of its prompt stands. `majority`: the class of most of its pixels. `mean`: the class of
            the highest mean probability.
        least: share of its pixels that must carry the class, in [0, 1].
    """

    by: Literal["prompt", "majority", "mean"]
    least: float = 0.0

    @classmethod
    def from_setting(cls, value: float | Literal["soft"]) -> Vote:
        """Return the vote that a value of `refine.vote` means."""
        if value == "soft":
            return cls("mean")
        return cls("prompt", value) if value else cls("majority")


@dataclass(frozen=True, slots=True)
class MaskCandidate:
    """A mask that a method proposes for a class.

    Attributes:
        label: index of the class.
        area: pixels, at the resolution of the model.
        coverage: share of its pixels that carry its class in the dense map. None where there is no dense map.
        predicted_iou, stability: SAM2's, in [0, 1]. None for masks of another model.
        score: by which the method ranks it among other masks, in [0, 1].
        reason: why the method chose it, where a rule decided between several.
        margin: by how much its class won, in [0, 1], where the mask and not its pixels were classified.
    """

    label: int
    area: int
    coverage: float | None
    predicted_iou: float | None
    stability: float | None
    score: float
    reason: str | None = None
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class Segment:
    """One instance of the assembled map.

    Attributes:
        index: its id in the map.
        label: index of its class.
        candidate: the mask that drew it. None: the dense map did.
        renamed: score of the class and its lead, where a memory bank has changed the class.
        drawn_by: indices of the candidates whose masks it unites.
    """

    index: int
    label: int
    candidate: MaskCandidate | None
    renamed: tuple[float, float] | None = None
    drawn_by: tuple[int, ...] = ()


def low_resolution_coverage(masks: Tensor, label_map: Tensor, labels: Tensor) -> Tensor:
    """Share of each mask's pixels that carry the class given to it, counted at the masks' own resolution.

    Args:
        masks: (P, M, h, w) bool.
        label_map: (h, w) class per pixel.
        labels: (P, M) the class of each mask.

    Returns:
        (P, M) float32 in [0, 1]; 0 for an empty mask.
    """
    classes, which = torch.unique(labels, return_inverse=True)
    members = _packed(label_map.flatten() == classes[:, None])
    packed = _packed(masks.flatten(2))
    return _counted(packed & members[which]) / _counted(packed).clamp(min=1)


def count_pixels(masks: Tensor) -> Tensor:
    """Return the pixels of each mask: (…, h, w) bool → (…) int64. It is several times faster than `sum`."""
    return _counted(_packed(masks.flatten(-2)))


def _packed(flags: Tensor) -> Tensor:
    """(…, n) bool as (…, groups, words) int64: eight flags a word, and so few words a group that bytes can add them."""
    if missing := -flags.shape[-1] % (8 * GROUP):
        flags = F.pad(flags, (0, missing))
    groups = flags.shape[-1] // (8 * GROUP)
    return flags.contiguous().view(torch.int64).view(*flags.shape[:-1], groups, GROUP)


def _counted(packed: Tensor) -> Tensor:
    """How many flags are set: (…) int64. A pass over words, where the sum of flags would make a number of each."""
    return packed.sum(dim=-1).view(torch.uint8).sum(dim=-1)


def mode_labels(masks: Tensor, label_map: Tensor, labels: Tensor) -> Tensor:
    """The class that most pixels of each mask carry: (P, M) int64; the prompt's own where none carries any.

    Args:
        masks: (P, M, h, w) bool.
        label_map: (h, w) class per pixel, negative where none.
        labels: (P,) class of each prompt.
    """
    classes = torch.unique(label_map[label_map >= 0])
    if not len(classes):
        return labels[:, None].expand(masks.shape[:2])
    member = (label_map[None] == classes[:, None, None]).float()
    votes = torch.einsum("pmhw,chw->pmc", masks.float(), member)
    won = classes[votes.argmax(dim=-1)]
    return torch.where(votes.amax(dim=-1) > 0, won, labels[:, None])


def soft_labels(masks: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The class of the highest mean probability in each mask, and that mean.

    Args:
        masks: (P, M, h, w) bool.
        probabilities: (C, h, w) float32.

    Returns:
        classes (P, M) int64 and means (P, M) float32, 0 for an empty mask.
    """
    means = torch.einsum("pmhw,chw->pmc", masks.float(), probabilities)
    means = means / masks.sum(dim=(-2, -1)).clamp(min=1)[..., None]
    best, labels = means.max(dim=-1)
    return labels, best


def choose(coverage: Tensor, predicted_iou: Tensor, vote: float) -> tuple[Tensor, Tensor]:
    """The best of a prompt's masks: among those that pass the vote, the highest coverage × predicted IoU.

    Args:
        coverage, predicted_iou: (P, M).
        vote: least coverage.

    Returns:
        index (P,) int64 and whether any mask passed (P,) bool.
    """
    passed = coverage >= vote
    rating = torch.where(passed, predicted_iou * coverage, torch.full_like(predicted_iou, -torch.inf))
    return rating.argmax(dim=1), passed.any(dim=1)


def distinct_by_class(masks: Tensor, labels: Tensor, rated: Tensor, same: float) -> list[int]:
    """Which masks to keep when of two of one class with an IoU above `same` the better rated one stays.

    Args:
        masks: (P, h, w) bool.
        labels: (P,) class of each.
        rated: (P,) score of each mask.

    Returns:
        Indices, best first.
    """
    flat = masks.flatten(1).float()
    area = flat.sum(dim=1)
    shared = flat @ flat.T
    overlap = shared / (area[:, None] + area[None] - shared).clamp(min=1)
    rival = (overlap > same) & (labels[:, None] == labels[None])
    kept: list[int] = []
    for index in rated.argsort(descending=True, stable=True).tolist():
        if not rival[index, kept].any():
            kept.append(index)
    return kept


def assemble(
    dense: ClassMap,
    candidates: Sequence[MaskCandidate],
    mask_of: Callable[[int], PlacedMask],
    min_area: int,
    dense_min_area: int | None,
    by_score: bool = False,
    presence: Presence | None = None,
    covered: bool = False,
) -> tuple[RunMap, list[Segment], list[int]]:
    """Paint the candidates over the dense map, so that every pixel has one owner at most.

    Args:
        dense: (H, W) int16 class per pixel, `UNLABELLED` where none.
        candidates: the masks.
        mask_of: index of a candidate → its mask. It is called for one at a time, so no stack of masks is held.
        min_area: a mask with fewer pixels is an artefact and is left out.
        dense_min_area: pixels outside of all masks keep their dense class, in pieces of at least so many pixels.
            None: they are left unlabelled.
        presence: what such a piece has to show of its class; None: nothing.
        by_score: paint the mask with the highest score last, so that it keeps its pixels; else the smallest.
        covered: keep a segment that later masks have covered. Otherwise it is dropped.

    Returns:
        The segment of each pixel, 0 where nothing is, in runs in which `dense` is constant; the `Segment` behind each
        positive number; and the indices of the candidates with fewer than `min_area` pixels.
    """
    assembly = _Assembly.of(dense.shape, len(candidates))
    for index in sorted(
        range(len(candidates)), key=lambda k: (candidates[k].score if by_score else -candidates[k].area, k)
    ):
        assembly.paint(index, candidates[index], mask_of(index), min_area, merge=not by_score)
    owner, segments = RunMap.of(assembly.owner, dense), assembly.segments
    if not covered:
        owner, segments = _without_remnants(owner, segments, min_area)
    if dense_min_area is not None:
        owner, segments = _with_pieces(owner, segments, dense, dense_min_area, presence)
    return owner, segments, assembly.small


@dataclass(frozen=True, slots=True)
class _Assembly:
    """The masks that are painted so far.

    Attributes:
        owner: (H, W) number of the segment of each pixel; 0 where there is none.
        segments: of the numbers 1, 2, ….
        boxes: x0, y0, x1, y1 of the pixels of each.
        small: indices of the candidates that were too small to be painted.
    """

    owner: Narrow
    segments: list[Segment]
    boxes: list[Box]
    small: list[int]

    @classmethod
    def of(cls, shape: tuple[int, ...], most: int) -> _Assembly:
        """Return a map without masks, for at most so many."""
        return cls(np.zeros(shape, narrow_dtype(most)), [], [], [])

    def paint(self, index: int, candidate: MaskCandidate, placed: PlacedMask, min_area: int, merge: bool) -> None:
        """Paint a candidate's mask. It becomes a segment, or a part of a segment that shows the same object."""
        mask, there = placed.pixels, self.owner[placed.place]
        area = np.count_nonzero(mask)
        if area < min_area:
            self.small.append(index)
            return
        hidden = np.zeros_like(mask)
        for rival in self._rivals(candidate.label, placed.box) if merge else ():
            shared = mask & (there == rival.index)
            overlap = np.count_nonzero(shared)
            if overlap >= SAME_OBJECT * area:
                np.copyto(there, rival.index, where=mask & (there == 0))
                self.segments[rival.index - 1] = replace(rival, drawn_by=(*rival.drawn_by, index))
                self.boxes[rival.index - 1] = _union(self.boxes[rival.index - 1], placed.box)
                return
            if overlap:
                hidden |= shared
        self.segments.append(Segment(len(self.segments) + 1, candidate.label, candidate, drawn_by=(index,)))
        self.boxes.append(placed.box)
        np.copyto(there, len(self.segments), where=mask & ~hidden)

    def _rivals(self, label: int, box: Box) -> list[Segment]:
        """Return the segments of a class whose boxes overlap with a box."""
        return [
            segment
            for segment, other in zip(self.segments, self.boxes, strict=True)
            if segment.label == label
            and other[0] < box[2]
            and box[0] < other[2]
            and other[1] < box[3]
            and box[1] < other[3]
        ]


def _union(one: Box, other: Box) -> Box:
    """Return the bounding box of two boxes."""
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def _without_remnants(owner: RunMap, segments: list[Segment], min_area: int) -> tuple[RunMap, list[Segment]]:
    """Drop segments with fewer than `min_area` visible pixels, and renumber the others."""
    area = np.bincount(owner.values, weights=owner.runs.lengths, minlength=len(segments) + 1)
    kept = [segment for segment in segments if area[segment.index] >= min_area]
    index_of = np.zeros(len(segments) + 1, np.int32)
    index_of[[segment.index for segment in kept]] = np.arange(1, len(kept) + 1)
    return replace(owner, values=index_of[owner.values]), [replace(s, index=int(index_of[s.index])) for s in kept]


def _with_pieces(
    owner: RunMap, segments: list[Segment], dense: ClassMap, min_area: int, presence: Presence | None
) -> tuple[RunMap, list[Segment]]:
    """Assign free pixels to an adjacent instance of their class, or make them a new instance."""
    free = np.where(owner.values > 0, UNLABELLED, dense.ravel()[owner.runs.starts])
    touching = owner.touching()
    pieces = connected_components(replace(owner, values=free), touching)
    index_of = _touched(pieces, owner, touching, np.array([UNLABELLED, *(s.label for s in segments)], np.int16))
    enough = (pieces.areas >= min_area) & (pieces.labels != UNLABELLED)
    if presence is not None:
        agrees = owner.runs.sums(presence.labels == dense)
        sure = np.bincount(pieces.numbers.values, weights=agrees, minlength=len(pieces.areas))
        shown = sure >= presence.alone * pieces.areas
        index_of[~shown] = 0
        enough &= shown & (pieces.areas >= presence.alone_area)
    new = np.flatnonzero((index_of == 0) & enough)
    new = new[np.argsort(pieces.labels[new], kind="stable")]
    index_of[new] = np.arange(len(segments) + 1, len(segments) + len(new) + 1)
    added = [Segment(int(index_of[k]), int(pieces.labels[k]), None) for k in new]
    return replace(owner, values=owner.values + index_of[pieces.numbers.values]), [*segments, *added]


def _touched(
    pieces: Components, owner: RunMap, touching: tuple[Indices, Indices], drawn: ClassMap
) -> NDArray[np.int32]:
    """For each piece the segment of its class that most of the pixels around it belong to; 0 where none does.

    A pixel counts once for a piece, however many of its pixels it touches.

    Args:
        pieces: of what no segment has, in the runs of `owner`.
        owner: segment of each run, 0 where there is none.
        touching: `owner.touching()`.
        drawn: class of each segment.
    """
    earlier, later = touching
    drawn_as = drawn[owner.values]  # UNLABELLED where a run is free
    free_as = pieces.labels[pieces.numbers.values]  # UNLABELLED where it is not
    of_earlier = np.flatnonzero((free_as[earlier] == drawn_as[later]) & (free_as[earlier] != UNLABELLED))
    of_later = np.flatnonzero((free_as[later] == drawn_as[earlier]) & (free_as[later] != UNLABELLED))
    mine = np.concatenate([earlier[of_earlier], later[of_later]])
    near = np.concatenate([later[of_earlier], earlier[of_later]])
    piece, segment = pieces.numbers.values[mine], owner.values[near].astype(np.int64)
    first, last = _shared_columns(owner, mine, near)
    votes = _lengths_of_union(piece, first, last, owner.size[0] * owner.size[1])
    keys = piece << 32 | segment
    pairs = np.unique(keys)
    counts = np.bincount(np.searchsorted(pairs, keys), weights=votes, minlength=len(pairs))
    index_of = np.zeros(len(pieces.labels), np.int32)
    order = np.lexsort((-pairs, counts))  # the most votes last, of equals the segment that was there first
    index_of[pairs[order] >> 32] = pairs[order] & 0xFFFFFFFF
    return index_of


def _shared_columns(owner: RunMap, mine: Indices, near: Indices) -> tuple[Indices, Indices]:
    """Return the pixels of runs that touch another run: the first one, and the one after the last.

    Args:
        mine: (P,) runs.
        near: (P,) runs that touch these, whose pixels are returned.
    """
    starts, lengths, width = owner.runs.starts, owner.runs.lengths, owner.size[1]
    moved = (starts[near] // width - starts[mine] // width) * width + starts[mine]
    first = np.maximum(moved - 1, starts[near])
    return first, np.minimum(moved + lengths[mine] + 1, starts[near] + lengths[near])


def _lengths_of_union(group: Indices, first: Indices, last: Indices, most: int) -> Indices:
    """Return for each interval its pixels that no interval of its group before it has, by their first pixels.

    Args:
        group: (N,) number of the group of each interval.
        first, last: (N,) its first pixel, and the pixel after its last.
        most: upper limit of `last`.
    """
    offset = group * (most + 1)
    order = np.argsort(offset + first)
    begins, ends = (offset + first)[order], (offset + last)[order]
    before = np.concatenate([[-1], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
    lengths = np.empty_like(ends)
    lengths[order] = np.maximum(ends - np.maximum(begins, before), 0)
    return lengths
