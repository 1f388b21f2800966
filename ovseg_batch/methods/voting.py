"""The vote between SAM2's masks and the dense label map, and the one map that comes out of it.

A mask is kept for a class when enough of its pixels carry that class in the dense map (thesis 3.1.6: 60 %; `vote` 0
keeps every mask for the class of its prompt). Kept masks are painted strongest first; where two claim a pixel the
stronger one has it, decided per mask, because deciding pixel by pixel leaves dotted patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ovseg_batch.methods.vocabulary import UNLABELLED

Array = np.ndarray[Any, Any]

SAME_OBJECT = 0.8  # a mask with this share of its pixels in a stronger one of its class shows the same object


@dataclass(frozen=True, slots=True)
class Claim:
    """A mask that passed the vote. `strength` orders claims; the other numbers lie in [0, 1] (METHODS 3)."""

    label: int
    strength: float
    coverage: float
    predicted_iou: float
    stability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """One connected instance in the assembled map: its id there, class, and the claim that drew it (None: dense)."""

    index: int
    label: int
    claim: Claim | None


def low_resolution_coverage(masks: Tensor, label_map: Tensor, labels: Tensor) -> Tensor:
    """Share of each mask's pixels that carry its prompt's class, counted at the masks' own resolution.

    Args:
        masks: (P, M, h, w) bool.
        label_map: (h, w) class per pixel.
        labels: (P,) class of each prompt.

    Returns:
        (P, M) float32 in [0, 1]; 0 for an empty mask.
    """
    member = label_map[None] == labels[:, None, None]
    hits = torch.einsum("pmhw,phw->pm", masks.float(), member.float())
    area = masks.sum(dim=(-2, -1))
    return hits / area.clamp(min=1)


def choose(coverage: Tensor, predicted_iou: Tensor, vote: float) -> tuple[Tensor, Tensor]:
    """The best of a prompt's masks: among those that pass the vote, the one SAM2 itself rates highest.

    Args:
        coverage, predicted_iou: (P, M).
        vote: least coverage.

    Returns:
        index (P,) int64 and whether any mask passed (P,) bool.
    """
    passed = coverage >= vote
    rating = torch.where(passed, predicted_iou, torch.full_like(predicted_iou, -torch.inf))
    return rating.argmax(dim=1), passed.any(dim=1)


def assemble(
    dense: Array, claims: Sequence[Claim], mask_of: Callable[[int], Array], min_area: int, dense_min_area: int | None
) -> tuple[Array, list[Segment]]:
    """Paint the claims over the dense map and name every connected instance.

    Args:
        dense: (H, W) int16 class per pixel, `UNLABELLED` where none.
        claims: the kept masks.
        mask_of: claim index → (H, W) bool; asked for one at a time, so no stack of masks is ever held.
        min_area: a mask with fewer pixels is an artefact and is left out.
        dense_min_area: pixels that no mask claims keep their dense class, in pieces of at least so many pixels;
            None: they are left unlabelled.

    Returns:
        segments (H, W) int32, 0 where nothing is, and the `Segment` behind each positive id.
    """
    owner = np.zeros(dense.shape, np.int32)
    segments: list[Segment] = []
    for index in sorted(range(len(claims)), key=lambda k: (-claims[k].strength, k)):
        _paint(owner, segments, claims[index], mask_of(index), min_area)
    if dense_min_area is not None:
        _keep_dense(owner, segments, dense, dense_min_area)
    return owner, segments


def _paint(owner: Array, segments: list[Segment], claim: Claim, mask: Array, min_area: int) -> None:
    area = int(mask.sum())
    if area < min_area:
        return
    overlap = np.bincount(owner[mask], minlength=len(segments) + 1)
    free = mask & (owner == 0)
    for segment in segments:
        if segment.label == claim.label and overlap[segment.index] >= SAME_OBJECT * area:
            owner[free] = segment.index
            return
    if overlap[0] >= min_area:
        segments.append(Segment(len(segments) + 1, claim.label, claim))
        owner[free] = len(segments)


def _keep_dense(owner: Array, segments: list[Segment], dense: Array, min_area: int) -> None:
    """Give unclaimed pixels to the instance of their class that they touch, or make them one of their own."""
    claimed = len(segments)
    label_of = np.array([UNLABELLED, *(segment.label for segment in segments)], np.int16)
    rest = np.where(owner == 0, dense, UNLABELLED)
    for label in np.unique(rest):
        if label == UNLABELLED:
            continue
        count, pieces, stats, _ = cv2.connectedComponentsWithStats((rest == label).astype(np.uint8), connectivity=8)
        for k in range(1, count):
            left, top, width, height, area = (int(v) for v in stats[k])
            window = (slice(max(top - 1, 0), top + height + 1), slice(max(left - 1, 0), left + width + 1))
            piece = pieces[window] == k
            rim = cv2.dilate(piece.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~piece
            touching = owner[window][rim]
            touching = touching[(touching > 0) & (touching <= claimed)]
            touching = touching[label_of[touching] == label]
            if touching.size:
                owner[window][piece] = int(np.bincount(touching).argmax())
            elif area >= min_area:
                segments.append(Segment(len(segments) + 1, int(label), None))
                owner[window][piece] = len(segments)
