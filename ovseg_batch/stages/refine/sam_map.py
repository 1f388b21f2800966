"""The refine method `trident-map`: SAM's masks and the probabilities of the classes decide each pixel together.

Source: Shi et al., Harnessing Vision Foundation Models for High-Performance, Training-Free Open Vocabulary Segmentation
(Trident), ICCV 2025; code: `sam_refinement` in seg_utils/utils.py of YuHengsss/Trident. The maps are tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.methods.prompts import PointPrompt, component_points
from ovseg_batch.methods.refined_map import (
    BLOCK_ELEMENTS,
    Halved,
    halved_labels,
    halved_probabilities,
    padded_matrices,
    strongest_classes,
)
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.methods.windows import long_side_size, rounded_up
from ovseg_batch.models.sam1 import Sam1, enlarged
from ovseg_batch.settings import RefineConfig
from ovseg_batch.stages.answer import DenseMap
from ovseg_batch.stages.refine.methods import Prompted
from ovseg_batch.types import PromptOutcome
from ovseg_batch.types.arrays import ClassMap, Pixels

ROUGH_GAIN = 0.005  # `sam_mask_coff` in trident.py: factor of class probabilities in mask prompts
MULTIPLE = 16  # pixels; the published code rounds the sides of SAM's image up to multiples of it


def refined_labels(
    sam: Sam1, image: Pixels, dense: DenseMap, settings: RefineConfig
) -> tuple[ClassMap, list[Prompted]]:
    """Return the refined class of each pixel, (H, W) int16, and the prompts.

    Every component of the map at half its size is prompted by its box, its most probable pixel and the rough map of its
    class. The background has components too.
    """
    size = (dense.labels.shape[0], dense.labels.shape[1])
    if min(size) < 2:
        return dense.labels, []

    def rows(first: int, last: int) -> Tensor:
        return dense.probabilities((0, first, size[1], last), (last - first, size[1]))

    step = max(1, BLOCK_ELEMENTS // (2 * rows(0, 1).shape[0] * size[1]))
    coarse = halved_labels(dense.labels)
    classes = np.unique(coarse[coarse != UNLABELLED]).tolist()
    halved = halved_probabilities(rows, size, classes, step)
    points = _points(coarse, classes, halved, settings)
    if not points:
        return dense.labels, []
    [embedding] = sam.embed([enlarged(image, MULTIPLE)])
    embedding = replace(embedding, size=(coarse.shape[0], coarse.shape[1]))
    logits, kept = [], []
    prompts: list[Prompted] = []
    for label in sorted({point.label for point in points}):
        own = [point for point in points if point.label == label]
        rough = _rough_map(halved.probabilities[classes.index(label)], size, sam, settings.prompt_floor)
        places = np.array([(p.x, p.y) for p in own], np.float32)
        boxes = np.array([(x0, y0, x1 - 1, y1 - 1) for x0, y0, x1, y1 in (p.box for p in own)], np.float32)
        drawn, rated = sam.decode(embedding, places, boxes, sam.row_normalised_prompt(rough), multimask=False)
        good = rated[:, 0] > settings.predicted_iou
        logits.append(drawn[good, 0])
        kept += [label] * int(good.sum())
        prompts += [
            Prompted(2 * point.x, 2 * point.y, label, PromptOutcome.BLENDED if used else PromptOutcome.DOUBTFUL)
            for point, used in zip(own, good.tolist(), strict=True)
        ]
    masks = torch.cat(logits)
    sizes = (sam.seen_size(rounded_up(*size, MULTIPLE)), rounded_up(*size, MULTIPLE), size)
    resize = padded_matrices(sam.image_size, sam.cells, sizes, masks.device)
    step = max(1, BLOCK_ELEMENTS // ((len(masks) + rows(0, 1).shape[0]) * size[1]))
    return strongest_classes(dense.labels, rows, masks, kept, resize, step), prompts


def _points(coarse: ClassMap, classes: Sequence[int], halved: Halved, settings: RefineConfig) -> list[PointPrompt]:
    """Return the prompts of the largest components of the map at half its size, in its pixels."""
    if not classes:
        return []
    floor = settings.prompt_floor
    sure = np.where(halved.highest.cpu().numpy() >= floor, coarse, np.int16(UNLABELLED))
    of = np.searchsorted(classes, np.where(sure == UNLABELLED, classes[0], sure))
    own = np.take_along_axis(halved.probabilities.cpu().numpy(), of[None], axis=0)[0]
    points = component_points(sure, settings.min_region, 0.0, "surest", (), own)
    return sorted(points, key=lambda p: -p.area)[: settings.max_points]


def _rough_map(probabilities: Tensor, size: tuple[int, int], sam: Sam1, floor: float) -> Tensor:
    """Return the mask prompt of a class over the padded image: (1, cells, cells)."""
    h, w = long_side_size(size[0], size[1], sam.cells)
    rough = F.interpolate(probabilities[None, None], (h, w), mode="bilinear", align_corners=False)[0]
    rough = F.pad(rough, (0, sam.cells - w, 0, sam.cells - h))
    return torch.where(rough > floor, ROUGH_GAIN * rough, 0)
