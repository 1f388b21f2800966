"""How far a mask and an image can be believed: what to look at first, and what to leave out of training.

A mask is wrong when the dense map was torn between two classes there, or when SAM2 saw no object where CLIP did. Both
were chosen on rendered scenes (docs/confidence.md), where the share of the dense map that agrees with a mask, SAM2's
stability, and the score that ranks masks for average precision add nothing to the order of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

#: What is left of a mask's margin where SAM2 was asked and drew no mask that agreed with the dense map.
ALONE = 0.25
STEPS = 1000  # of confidence, where masks are counted by it


def mask_confidence(margin: float, predicted_iou: float | None, asked: bool) -> float:
    """Margin × predicted IoU, in [0, 1].

    Args:
        margin: mean over the mask of the best class's probability less the second's, in [0, 1].
        predicted_iou: SAM2's own of the mask; None where the dense map drew it.
        asked: whether SAM2 was asked for masks at all.
    """
    if predicted_iou is None:
        return _share(margin) * (ALONE if asked else 1.0)
    return _share(margin) * _share(predicted_iou)


def image_confidence(confidences: Iterable[float]) -> float:
    """exp(-the number of wrong masks to be expected), in [0, 1]; 0 where there is no mask to speak for the image.

    Args:
        confidences: of all its masks.
    """
    wrong = [1.0 - confidence for confidence in confidences]
    return math.exp(-sum(wrong)) if wrong else 0.0


def step_of(confidence: float) -> int:
    """0 … 1000: the confidence in steps, rounded down, so that a threshold of so many steps keeps the mask."""
    return min(int(confidence * STEPS), STEPS)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
