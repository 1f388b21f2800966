"""Where refine's masks come from: SAM2 asked at points of the dense map, or proposals made before.

Each answers with claims, at SAM2's own resolution until somebody asks for a mask at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovseg_batch.config import RefineConfig
from ovseg_batch.io import rle
from ovseg_batch.methods.prompts import PointPrompt, component_points
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.methods.voting import Claim, choose, distinct_by_class, low_resolution_coverage, mode_labels
from ovseg_batch.models.sam import Sam, stability

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """Claims, how to get the (H, W) bool mask of each, and how many prompts were asked."""

    claims: list[Claim]
    mask_of: Callable[[int], Array]
    prompts: int


def _no_mask(index: int) -> Array:
    raise IndexError(index)


NOTHING = Found([], _no_mask, 0)


def prompted(
    sam: Sam,
    image: Array,
    labels: Array,
    settings: RefineConfig,
    ignore: tuple[int, ...],
    min_area: int,
    chunk: int | None,
) -> Found:
    """One point in every connected component of the dense map; of SAM2's three masks the one the map agrees with best.

    Source: thesis 3.1.6.
    """
    points = component_points(labels, min_area, settings.min_distance, settings.point, ignore)
    points = sorted(points, key=lambda p: -p.area)[: settings.max_points]
    if not points:
        return NOTHING
    logits, predicted_iou = _ask(sam, image, points, chunk)
    classes = torch.tensor([p.label for p in points], device=logits.device)
    coarse = torch.from_numpy(_sampled(labels, logits.shape[-2], logits.shape[-1])).to(logits.device)
    drawn = logits > 0
    given = classes[:, None].expand(drawn.shape[:2]) if settings.vote > 0 else mode_labels(drawn, coarse, classes)
    coverage = low_resolution_coverage(drawn, coarse, given)
    best, kept = choose(coverage, predicted_iou, settings.vote)
    chosen = [(p, int(best[p])) for p in range(len(points)) if kept[p] and int(given[p, best[p]]) not in ignore]
    return _claimed(sam, labels.shape, logits, predicted_iou, given, coverage, chosen, len(points))


def guided(
    sam: Sam,
    image: Array,
    labels: Array,
    confidence: Array,
    settings: RefineConfig,
    ignore: tuple[int, ...],
    chunk: int | None,
) -> Found:
    """One point in every component of what the dense map is sure of; of three masks the one SAM2 rates best.

    A mask that repeats a better one of its class is dropped. Source: the clip-guided tool.
    """
    sure = np.where(confidence >= settings.min_confidence, labels, UNLABELLED)
    points = component_points(sure, settings.min_region, 0.0, settings.point, ignore)
    points = sorted(points, key=lambda p: -p.area)[: settings.max_points]
    if not points:
        return NOTHING
    logits, predicted_iou = _ask(sam, image, points, chunk)
    best = predicted_iou.argmax(dim=1)
    classes = torch.tensor([p.label for p in points], device=logits.device)
    coarse = torch.from_numpy(_sampled(labels, logits.shape[-2], logits.shape[-1])).to(logits.device)
    given = classes[:, None].expand(logits.shape[:2])
    coverage = low_resolution_coverage(logits > 0, coarse, given)
    rows = torch.arange(len(points), device=logits.device)
    kept = distinct_by_class(logits[rows, best] > 0, classes, predicted_iou[rows, best], settings.same_object)
    chosen = [(p, int(best[p])) for p in kept]
    return _claimed(sam, labels.shape, logits, predicted_iou, given, coverage, chosen, len(points))


def voted(proposals: Sequence[dict[str, Any]], labels: Array, vote: float, ignore: tuple[int, ...]) -> Found:
    """The proposals of which enough pixels carry one class in the dense map.

    Source: the pipeline's document; with `vote` 0 CorrCLIP's map correction.
    """
    claims, kept = [], []
    for proposal in proposals:
        inside = labels[rle.decode(proposal["rle"], *labels.shape)]
        counts = np.bincount(inside[inside >= 0], minlength=1)
        label = int(counts.argmax())
        coverage = float(counts[label] / max(inside.size, 1))
        if counts[label] == 0 or coverage < vote or label in ignore:
            continue
        rated = min(max(float(proposal["predicted_iou"]), 0.0), 1.0)
        claims.append(Claim(label, int(proposal["area"]), coverage, rated, float(proposal["stability"])))
        kept.append(proposal["rle"])
    return Found(claims, lambda index: rle.decode(kept[index], *labels.shape), 0)


def _ask(sam: Sam, image: Array, points: Sequence[PointPrompt], chunk: int | None) -> tuple[Tensor, Tensor]:
    [embedding] = sam.embed([image])
    return sam.predict_points(embedding, np.array([(p.x, p.y) for p in points], np.float32), chunk)


def _claimed(
    sam: Sam,
    size: tuple[int, ...],
    logits: Tensor,
    predicted_iou: Tensor,
    given: Tensor,
    coverage: Tensor,
    chosen: Sequence[tuple[int, int]],
    prompts: int,
) -> Found:
    """The claims of the chosen (prompt, mask) pairs."""
    area, steadiness = (logits > 0).sum(dim=(-2, -1)), stability(logits)
    claims = [
        Claim(
            int(given[p, m]),
            int(area[p, m]),
            float(coverage[p, m]),
            float(predicted_iou[p, m].clamp(0, 1)),
            float(steadiness[p, m]),
        )
        for p, m in chosen
    ]

    def mask_of(index: int) -> Array:
        p, m = chosen[index]
        mask: Array = (sam.upsample(logits[p, m][None], (size[0], size[1]))[0] > 0).cpu().numpy()
        return mask

    return Found(claims, mask_of, prompts)


def _sampled(labels: Array, h: int, w: int) -> Array:
    """The label map sampled at the centres of an (h, w) grid over the whole image."""
    ys = ((np.arange(h) + 0.5) * labels.shape[0] / h).astype(np.int64)
    xs = ((np.arange(w) + 0.5) * labels.shape[1] / w).astype(np.int64)
    return labels[np.ix_(ys, xs)]
