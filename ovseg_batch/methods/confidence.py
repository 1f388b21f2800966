"""How far a mask and an image can be believed: what to review first, and what to leave out of training.

A mask is wrong when the dense map was torn between two classes there, when the class hardly exceeds the words that
compete, or when SAM2 saw no object where CLIP did. The factors were chosen on rendered scenes (docs/confidence.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Factor of the margin where SAM2 was prompted and gave no mask that agreed with the dense map.
ALONE = 0.25
UNSURE = 0.5  # a mask of less confidence is one to review
STEPS = 1000  # of confidence, where masks are counted by it


def mask_confidence(margin: float, predicted_iou: float | None, with_sam: bool, clear: float = 1.0) -> float:
    """Return margin × predicted IoU × clear, in [0, 1].

    Args:
        margin: mean over the mask of the best class's probability less the second's, in [0, 1].
        predicted_iou: SAM2's own of the mask; None where the dense map drew it.
        with_sam: whether the run uses SAM2.
        clear: share of the mask's pixels whose class exceeds the words that compete by far (`presence.CLEAR`).
    """
    if predicted_iou is None:
        return _share(margin) * _share(clear) * (ALONE if with_sam else 1.0)
    return _share(margin) * _share(clear) * _share(predicted_iou)


@dataclass(frozen=True, slots=True)
class ImageConfidence:
    """What the masks of an image say of it together.

    Attributes:
        masks: number of masks.
        unsure: those whose confidence is below `UNSURE`.
        least: confidence of the least sure mask, in [0, 1]; 1 without masks.
        doubt: sum of 1 - confidence over the masks, in [0, masks]. Images of more doubt are reviewed earlier.
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
    """0 … 1000: the confidence in steps, rounded down, so that a threshold of so many steps keeps the mask."""
    return min(int(confidence * STEPS), STEPS)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
