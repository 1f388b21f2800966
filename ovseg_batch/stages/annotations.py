"""How a mask becomes an annotation, whichever stage drew it."""

from __future__ import annotations

from ovseg_batch.io import rle
from ovseg_batch.methods.confidence import mask_confidence
from ovseg_batch.methods.voting import Claim
from ovseg_batch.types import Annotation


def make_annotation(
    counts: bytes,
    size: tuple[int, int],
    claim: Claim | None,
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
        claim: the mask that drew it; None: the dense map did.
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
        source="sam" if claim else "dense",
        confidence=mask_confidence(margin, claim.predicted_iou if claim else None, with_sam, clear),
        margin=margin,
        coverage=coverage,
        predicted_iou=claim.predicted_iou if claim else None,
        stability=claim.stability if claim else None,
        reason=claim.reason if claim else None,
    )
