"""The refine methods: masks of SAM2 for components of the dense map, or from proposals.

Each returns mask candidates. Their masks stay at SAM2's own resolution until one is needed at full size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovseg_batch.io import rle
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.presence import Presence
from ovseg_batch.methods.prompts import PointPrompt, component_points
from ovseg_batch.methods.resized_masks import above
from ovseg_batch.methods.tiles import Box, View, place_views
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.methods.voting import (
    MaskCandidate,
    Vote,
    choose,
    count_pixels,
    distinct_by_class,
    low_resolution_coverage,
    mode_labels,
    soft_labels,
)
from ovseg_batch.models.sam import Embedding, Sam, foreground, stability
from ovseg_batch.settings import RefineConfig
from ovseg_batch.stages.answer import DenseMap
from ovseg_batch.types import PromptOutcome, Proposal
from ovseg_batch.types.arrays import Scalar

#: a box (x0, y0, x1, y1) in pixels → SAM2's embedding of that part of the image
See = Callable[[Box], Embedding]

ROUGH_GAIN = 0.005  # Trident: factor of class probabilities in mask prompts
ROUGH_FLOOR = 0.1  # Trident: lower probabilities are excluded from mask prompts


@dataclass(frozen=True, slots=True)
class Prompted:
    """A point prompt that SAM2 received.

    Attributes:
        x, y: pixels of the image.
        label: index of its class.
        result: index of the candidate that it gave, or the reason why it gave none.
    """

    x: float
    y: float
    label: int
    result: int | PromptOutcome


@dataclass(frozen=True, slots=True)
class Found:
    """The candidates of an image.

    Attributes:
        mask_of: index of a candidate → its mask.
        prompts: the prompts that SAM2 received for them.
    """

    candidates: list[MaskCandidate]
    mask_of: Callable[[int], PlacedMask]
    prompts: Sequence[Prompted] = ()


@dataclass(frozen=True, slots=True)
class _Predictions:
    """SAM2's masks for the prompts of one view: P prompts, M masks each."""

    view: View
    logits: Tensor  # (P, M, h, w)
    predicted_iou: Tensor  # (P, M)
    classes: Tensor  # (P,)
    labels: Tensor  # (h, w): the dense map there
    sure: Tensor | None  # (h, w): its sure pixels, where presence counts


def _no_mask(index: int) -> PlacedMask:
    raise IndexError(index)


NOTHING = Found([], _no_mask)


def points_of(dense: DenseMap, settings: RefineConfig, min_area: int) -> list[PointPrompt]:
    """Return the point prompts of the method that the settings name, those of the largest components first."""
    labels = dense.labels if dense.presence is None else dense.presence.labels
    match settings.method:
        case "guided":
            sure = np.where(dense.confidence >= settings.min_confidence, labels, UNLABELLED)
            points = component_points(sure, settings.min_region, 0.0, settings.point, dense.ignore)
        case "trident":
            points = component_points(labels, settings.min_region, 0.0, "surest", dense.ignore, dense.confidence)
        case _:
            points = component_points(
                labels, min_area, settings.min_distance, settings.point, dense.ignore, limit=settings.max_points
            )
    return sorted(points, key=lambda p: -p.area)[: settings.max_points]


def prompted(sam: Sam, see: See, dense: DenseMap, points: Sequence[PointPrompt], settings: RefineConfig) -> Found:
    """Prompt one point per connected component, and keep the mask of three that agrees best with the dense map.

    Source: García García 2025, section 3.1.6.
    """

    vote = Vote.from_setting(settings.vote)

    def select(predictions: _Predictions) -> _Selection:
        drawn = foreground(predictions.logits)
        if vote.by == "mean":
            seen = dense.probabilities(predictions.view.box, (drawn.shape[-2], drawn.shape[-1]))
            given, coverage = soft_labels(drawn, seen)
        elif vote.by == "majority":
            given = mode_labels(drawn, predictions.labels, predictions.classes)
            coverage = low_resolution_coverage(drawn, predictions.labels, given)
        else:
            given = predictions.classes[:, None].expand(drawn.shape[:2])
            coverage = low_resolution_coverage(drawn, predictions.labels, given)
        best, kept = choose(coverage, predictions.predicted_iou, vote.least)
        rows = torch.arange(len(best), device=best.device)
        found = (part.tolist() for part in (best, given[rows, best], coverage[rows, best], kept))
        selection = _Selection([PromptOutcome.OUTVOTED] * len(best), [])
        for p, (mask, label, share, passed) in enumerate(zip(*found, strict=True)):
            if label in dense.ignore:
                selection.reasons[p] = PromptOutcome.BACKGROUND
            elif passed:
                selection.masks.append(_Selected(p, mask, label, share))
        return selection

    return _found(dense, points, _predict(sam, see, dense, points, settings), select)


def guided(sam: Sam, see: See, dense: DenseMap, points: Sequence[PointPrompt], settings: RefineConfig) -> Found:
    """Prompt one point per component of high confidence, and keep the mask with the highest predicted IoU of three.

    A mask that repeats a better one of its class is dropped. Source: García García 2025, README of the code
    "CLIP-Guided SAM2 Segmentation".
    """

    def select(predictions: _Predictions) -> _Selection:
        best = predictions.predicted_iou.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        drawn, rated = predictions.logits[rows, best] > 0, predictions.predicted_iou[rows, best]
        kept = distinct_by_class(drawn, predictions.classes, rated, settings.same_object)
        coverage = low_resolution_coverage(drawn[:, None], predictions.labels, predictions.classes[:, None])[:, 0]
        chosen, classes, shares = best.tolist(), predictions.classes.tolist(), coverage.tolist()
        masks = [_Selected(p, chosen[p], classes[p], shares[p]) for p in kept]
        return _Selection([PromptOutcome.DUPLICATE] * len(best), masks)

    return _found(dense, points, _predict(sam, see, dense, points, settings), select)


def trident(sam: Sam, see: See, dense: DenseMap, points: Sequence[PointPrompt], settings: RefineConfig) -> Found:
    """Prompt the box, the most confident point and a rough mask of every component, for one mask each.

    Masks with a predicted IoU of at most `predicted_iou` are dropped. Source: Shi et al., Harnessing Vision Foundation
    Models for High-Performance, Training-Free Open Vocabulary Segmentation (Trident), 2024; code: `sam_refinement`.
    """

    def select(predictions: _Predictions) -> _Selection:
        coverage = low_resolution_coverage(
            foreground(predictions.logits), predictions.labels, predictions.classes[:, None]
        )[:, 0]
        kept = (predictions.predicted_iou[:, 0] > settings.predicted_iou).nonzero()[:, 0].tolist()
        labels, shares = predictions.classes.tolist(), coverage.tolist()
        masks = [_Selected(p, 0, labels[p], shares[p]) for p in kept]
        return _Selection([PromptOutcome.DOUBTFUL] * len(labels), masks)

    return _found(dense, points, _predict(sam, see, dense, points, settings, rough=True), select)


def voted(proposals: Sequence[Proposal], dense: DenseMap, vote: Vote) -> Found:
    """Return the proposals in which enough pixels carry one class of the dense map, under the class of most pixels.

    Source: García García 2025, README of the code "SCLIP-based Segmentation and Editing Pipeline". Without a least
    share, CorrCLIP's map correction; by `mean`, the class of the highest mean probability.
    """
    candidates, kept = [], []
    size = dense.labels.shape
    small = (min(size[0], 256), min(size[1], 256))
    probabilities = dense.probabilities((0, 0, size[1], size[0]), small) if vote.by == "mean" else None
    for proposal in proposals:
        mask = rle.decode_placed(proposal.rle, *size)
        if probabilities is not None:
            drawn = torch.from_numpy(sampled(mask.whole(size), *small)).to(probabilities.device)
            label, coverage = (float(part) for part in soft_labels(drawn[None, None], probabilities))
            label = int(label)
        else:
            inside = dense.labels[mask.place][mask.pixels]
            counts = np.bincount(inside[inside >= 0], minlength=1)
            label = int(counts.argmax())
            coverage = float(counts[label] / max(inside.size, 1))
        if coverage == 0 or coverage < vote.least or label in dense.ignore:
            continue
        if dense.presence is not None and not dense.presence.shows(dense.labels, mask, label):
            continue
        rated = min(max(float(proposal.predicted_iou), 0.0), 1.0)
        candidates.append(MaskCandidate(label, proposal.area, coverage, rated, proposal.stability, rated))
        kept.append(proposal.rle)
    return Found(candidates, lambda index: rle.decode_placed(kept[index], *size))


@dataclass(frozen=True, slots=True)
class _Selected:
    """A mask of a view that becomes a candidate: number of its prompt, number of the mask, class and coverage."""

    prompt: int
    mask: int
    label: int
    coverage: float


@dataclass(frozen=True, slots=True)
class _Selection:
    """The masks of a view that become candidates, and for each of its prompts the reason that applies if none does."""

    reasons: list[PromptOutcome]
    masks: list[_Selected]


def _predict(
    sam: Sam,
    see: See,
    dense: DenseMap,
    points: Sequence[PointPrompt],
    settings: RefineConfig,
    rough: bool = False,
) -> Iterator[_Predictions]:
    """Yield SAM2's masks, view by view. With `rough`, boxes and class maps of the components are prompts too."""
    labels = dense.labels
    for view in place_views([point.box for point in points], (labels.shape[0], labels.shape[1]), settings.tile):
        x0, y0, x1, y1 = view.box
        inside = [points[k] for k in view.members]
        embedding = see(view.box)
        coordinates = np.array([(p.x - x0, p.y - y0) for p in inside], np.float32)
        classes = torch.tensor([p.label for p in inside])
        if not rough:
            logits, predicted_iou = sam.predict(embedding, coordinates)
        else:
            boxes = np.array([p.box for p in inside], np.float32) - np.array([x0, y0, x0, y0], np.float32)
            side = sam.image_size // 4
            likely = dense.probabilities(view.box, (side, side))[classes]
            maps = torch.where(likely > ROUGH_FLOOR, ROUGH_GAIN * likely, torch.zeros_like(likely))
            logits, predicted_iou = sam.predict(embedding, coordinates, boxes, maps, multimask=False)
        h, w = logits.shape[-2:]
        seen = torch.from_numpy(sampled(labels[y0:y1, x0:x1], h, w)).to(logits.device)
        sure = None
        if dense.presence is not None:
            sure = torch.from_numpy(sampled(dense.presence.labels[y0:y1, x0:x1], h, w)).to(logits.device)
        yield _Predictions(view, logits, predicted_iou, classes.to(logits.device), seen, sure)


def _found(
    dense: DenseMap,
    points: Sequence[PointPrompt],
    predictions: Iterator[_Predictions],
    select: Callable[[_Predictions], _Selection],
) -> Found:
    """Return the candidates of all views. Masks are stored at SAM2's resolution."""
    candidates: list[MaskCandidate] = []
    kept: list[tuple[Tensor, Box]] = []
    results: dict[int, int | PromptOutcome] = {}
    for one in predictions:
        x0, y0, x1, y1 = one.view.box
        selection = select(one)
        chosen = _present(one, selection, dense.presence)
        results.update(zip(one.view.members, _reasons(one, selection, chosen), strict=True))
        which = (
            torch.tensor([(c.prompt, c.mask) for c in chosen], dtype=torch.long).reshape(-1, 2).to(one.logits.device)
        )
        logits = one.logits[which[:, 0], which[:, 1]]
        rated = one.predicted_iou[which[:, 0], which[:, 1]].clamp(0, 1).tolist()
        areas, steady = count_pixels(foreground(logits)).tolist(), stability(logits).tolist()
        small = logits.cpu()  # masks of the original size would take much longer to copy from a GPU
        for k, c in enumerate(chosen):
            if not areas[k]:
                results[one.view.members[c.prompt]] = PromptOutcome.EMPTY
                continue
            results[one.view.members[c.prompt]] = len(candidates)
            pixels = areas[k] * (x1 - x0) * (y1 - y0) // logits[k].numel()
            candidates.append(MaskCandidate(c.label, pixels, c.coverage, rated[k], steady[k], rated[k]))
            kept.append((small[k], one.view.box))

    def mask_of(index: int) -> PlacedMask:
        logits, (x0, y0, x1, y1) = kept[index]
        return above(logits, (y1 - y0, x1 - x0)).placed().shifted(x0, y0)

    prompts = [Prompted(point.x, point.y, point.label, results[k]) for k, point in enumerate(points)]
    return Found(candidates, mask_of, prompts)


def _reasons(predictions: _Predictions, selection: _Selection, chosen: Sequence[_Selected]) -> list[PromptOutcome]:
    """Return for each prompt of a view why it gives no candidate. Those of `chosen` prompts have no meaning."""
    reasons = list(selection.reasons)
    for selected in selection.masks:
        reasons[selected.prompt] = PromptOutcome.ABSENT
    others = sorted(set(range(len(reasons))) - {selected.prompt for selected in chosen})
    if others:
        highest = predictions.logits[others].amax(dim=(1, 2, 3)).tolist()
        for prompt, logit in zip(others, highest, strict=True):
            if logit <= 0:
                reasons[prompt] = PromptOutcome.EMPTY
    return reasons


def _present(predictions: _Predictions, selection: _Selection, presence: Presence | None) -> list[_Selected]:
    """Return the masks that show enough of their class, counted at SAM2's resolution."""
    selected = selection.masks
    if presence is None or predictions.sure is None or not selected:
        return selected
    which = torch.tensor([(c.prompt, c.mask, c.label) for c in selected], device=predictions.logits.device)
    masks = predictions.logits[which[:, 0], which[:, 1]][:, None] > 0
    sure, all_pixels = (
        low_resolution_coverage(masks, labels, which[:, 2:])[:, 0] for labels in (predictions.sure, predictions.labels)
    )
    shown = (sure >= presence.share * all_pixels).tolist()
    return list(itertools.compress(selected, shown))


def sampled(values: NDArray[Scalar], h: int, w: int) -> NDArray[Scalar]:
    """Sample a map at the cell centres of an (h, w) grid over the whole image."""
    ys = ((np.arange(h) + 0.5) * values.shape[0] / h).astype(np.int64)
    xs = ((np.arange(w) + 0.5) * values.shape[1] / w).astype(np.int64)
    return values[np.ix_(ys, xs)]
