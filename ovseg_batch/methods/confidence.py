"""Confidence of masks and images, to decide which to review first and which to exclude from training.

Errors are frequent where two classes have similar probabilities, where the class hardly exceeds the competing words, or
where SAM2 found no object. The factors were chosen on rendered scenes (docs/confidence.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Factor of the margin where SAM2 was prompted but none of its masks agreed with the dense map.
ALONE = 0.25
UNSURE = 0.5  # masks with less confidence need review
STEPS = 1000  # bins of confidence in the counts of masks


def mask_confidence(margin: float, predicted_iou: float | None, with_sam: bool, clear: float = 1.0) -> float:
    """Return margin × predicted IoU × clear, in [0, 1].

    Args:
        margin: mean lead of the best class's probability over the second's within the mask, in [0, 1].
        predicted_iou: SAM2's predicted IoU of the mask. None where the dense map drew it.
        with_sam: whether the run uses SAM2.
        clear: share of the mask's pixels whose class clearly exceeds the competing words (`presence.CLEAR`).
    """
    if predicted_iou is None:
        return _share(margin) * _share(clear) * (ALONE if with_sam else 1.0)
    return _share(margin) * _share(clear) * _share(predicted_iou)


@dataclass(frozen=True, slots=True)
class ImageConfidence:
    """Summary of the confidences of an image's masks.

    Attributes:
        masks: number of masks.
        unsure: number of masks whose confidence is below `UNSURE`.
        least: lowest confidence of a mask, in [0, 1]; 1 without masks.
        doubt: sum of 1 - confidence over the masks, in [0, masks]. Images with a higher sum are reviewed earlier.
    """

    masks: int
    unsure: int
    least: float
    doubt: float

    @classmethod
    def from_masks(cls, confidences: Iterable[float]) -> ImageConfidence:
        """Summarise the confidences of all masks of an image."""
        values = list(confidences)
        unsure, least = sum(value < UNSURE for value in values), min(values, default=1.0)
        return cls(len(values), unsure, least, sum((1.0 - value for value in values), 0.0))

    def __str__(self) -> str:
        return f"{self.unsure} of {self.masks} {'mask' if self.masks == 1 else 'masks'} unsure"


def step_of(confidence: float) -> int:
    """Return the bin of a confidence, 0 … 1000. It is rounded down, so its lower edge as a threshold keeps the mask."""
    return min(int(confidence * STEPS), STEPS)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
