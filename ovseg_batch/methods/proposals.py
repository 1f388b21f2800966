"""Where to ask for proposals, and which of two that show the same thing to keep.

Source: SAM 2's automatic mask generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.ops import nms

from ovseg_batch.types import Proposal

Array = np.ndarray[Any, Any]


def point_grid(points_per_side: int, size: tuple[int, int]) -> Array:
    """The centres of a regular grid over the image.

    Args:
        points_per_side: n; there are n² points.
        size: (H, W) pixels.

    Returns:
        (n², 2) float32 x, y in pixels, row by row.
    """
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centres * size[1], centres * size[0])
    return np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float32)


def keep_distinct(proposals: Sequence[Proposal], overlap: float) -> list[Proposal]:
    """Of proposals whose boxes overlap more than `overlap` (IoU), the one with the best predicted IoU; best first.

    Boxes are measured as the automatic mask generator does, from the first pixel's to the last pixel's corner.
    """
    if not proposals:
        return []
    x, y, width, height = np.array([proposal.bbox for proposal in proposals], np.float32).T
    boxes = torch.from_numpy(np.stack([x, y, x + width - 1, y + height - 1], axis=-1))
    rated = torch.tensor([proposal.predicted_iou for proposal in proposals])
    return [proposals[k] for k in nms(boxes, rated, overlap).tolist()]


def paint_regions(masks: Iterable[Array], size: tuple[int, int]) -> Array:
    """A map of regions: (H, W) int32, 0 where no mask is, later masks over earlier ones.

    Args:
        masks: (H, W) bool each; give the largest first, so that what is small lies in front.
        size: (H, W).
    """
    regions = np.zeros(size, np.int32)
    for number, mask in enumerate(masks, start=1):
        regions[mask] = number
    return regions
