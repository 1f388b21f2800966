"""Point grids for proposals, and suppression of duplicate proposals.

Source: `SAM2AutomaticMaskGenerator` of facebookresearch/sam2; Kirillov et al., Segment Anything, ICCV 2023, appendix B.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torchvision.ops import nms

from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.types import Proposal
from ovseg_batch.types.arrays import ClassMap, Floats, SegmentMap


def point_grid(points_per_side: int, size: tuple[int, int]) -> Floats:
    """Return the cell centres of a regular grid over the image.

    Args:
        points_per_side: n, for n² points.
        size: (H, W) pixels.

    Returns:
        (n², 2) float32 x, y in pixels, row by row.
    """
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centres * size[1], centres * size[0])
    return np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float32)


def keep_distinct(proposals: Sequence[Proposal], overlap: float) -> list[Proposal]:
    """Return proposals after non-maximum suppression of boxes: best first, no box IoU above `overlap`.

    As in SAM2's generator, a box extends from the corner of the first pixel to the corner of the last pixel.
    """
    if not proposals:
        return []
    x, y, width, height = np.array([proposal.bbox for proposal in proposals], np.float32).T
    boxes = torch.from_numpy(np.stack([x, y, x + width - 1, y + height - 1], axis=-1))
    rated = torch.tensor([proposal.predicted_iou for proposal in proposals])
    return [proposals[k] for k in nms(boxes, rated, overlap).tolist()]


def region_classes(regions: SegmentMap, labels: ClassMap) -> ClassMap:
    """Return the labels after every region has taken its most frequent class. Of equal ones, the first counts.

    As in CorrCLIP's code (zdk258/CorrCLIP, `CorrCLIPv1/corrclip_segmentor.py`, "Map Correction"), the region with the
    smallest number keeps its labels, even if it is not 0.

    Args:
        regions: (H, W) int32, number of the region of each pixel.
        labels: (H, W) class of each pixel, -1 for none.

    Returns:
        (H, W) of the dtype of `labels`.
    """
    numbers, of_pixel = np.unique(regions, return_inverse=True)
    of_pixel = of_pixel.reshape(regions.shape)
    classes = int(labels.max(initial=-1)) + 2
    pairs = of_pixel.astype(np.int64) * classes + (labels.astype(np.int64) + 1)
    counts = np.bincount(pairs.ravel(), minlength=len(numbers) * classes).reshape(len(numbers), classes)
    modes = (counts.argmax(axis=1) - 1).astype(labels.dtype)
    return np.where(of_pixel == 0, labels, modes[of_pixel])


def paint_regions(masks: Iterable[PlacedMask], size: tuple[int, int]) -> SegmentMap:
    """Paint masks into a region map (H, W) int32, numbered from 1. Later masks cover earlier ones; 0 means no mask.

    Args:
        masks: in their bounding boxes.
        size: (H, W) in pixels.
    """
    regions = np.zeros(size, np.int32)
    for number, mask in enumerate(masks, start=1):
        mask.paint(regions, number)
    return regions
