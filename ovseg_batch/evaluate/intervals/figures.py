"""95 % intervals of the figures of an evaluation, by resampling its images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ovseg_batch.evaluate.intervals.average_precision import resampled
from ovseg_batch.evaluate.intervals.image_counts import (
    ImageCounts,
    accuracy_of,
    interval,
    iou_of,
    mean_known,
    samples,
    weighted_sums,
)
from ovseg_batch.types.arrays import AnyArray, Doubles, Indices

AP_RESAMPLES = 200  # every sample ranks all masks anew

Intervals = dict[str, tuple[float, float]]


def semantic_intervals(counts: ImageCounts, groups: Mapping[str, Sequence[int]], panoptic: bool) -> Intervals:
    """Return figure → interval for the figures of label maps, and of segments where they were counted.

    Args:
        groups: name → classes, for `mIoU name`.
        panoptic: whether segments were counted.
    """
    rows, arrays = counts.rows(), counts.arrays()
    if not len(rows):
        return {}
    pixels, segments = arrays["pixels of images"], arrays["segments of images"]
    boundaries = arrays["boundaries"][np.argsort(arrays["boundaries"][:, 0], kind="stable"), 1]
    drawn = boundaries[~np.isnan(boundaries)]
    found: defaultdict[str, list[Doubles]] = defaultdict(list)
    for weights in samples(len(rows)):
        sums = weighted_sums(pixels, rows, counts.classes + 1, weights)
        iou = iou_of(sums[:, :-1])
        found["mIoU"].append(mean_known(iou))
        for name, members in groups.items():
            found[f"mIoU {name}"].append(mean_known(iou[:, list(members)]))
        found["pixel accuracy"].append(sums[..., 0].sum(axis=1) / np.maximum(sums[..., 1].sum(axis=1), 1))
        found["mean accuracy"].append(mean_known(accuracy_of(sums[:, :-1])))
        if len(drawn):
            known = weights[:, ~np.isnan(boundaries)]
            total = known.sum(axis=1)
            found["boundary F1"].append(
                np.divide(known @ drawn, total, out=np.full(len(total), np.nan), where=total > 0)
            )
        if panoptic:
            for name, values in _panoptic(weighted_sums(segments, rows, counts.classes, weights)).items():
                found[name].append(values)
    return {name: interval(np.concatenate(parts)) for name, parts in found.items()}


def _panoptic(sums: Doubles) -> dict[str, Doubles]:
    """Return PQ, SQ and RQ (B,) of sums (B, C, 4), as `PanopticScore.quality`."""
    iou, hit, wrong, missed = np.moveaxis(sums, -1, 0)
    total = hit + 0.5 * wrong + 0.5 * missed
    nowhere = np.full(total.shape, np.nan)
    recognition = np.divide(hit, total, out=nowhere.copy(), where=total > 0)
    segmentation = np.divide(iou, hit, out=np.zeros(total.shape), where=hit > 0)
    quality = {
        "PQ": recognition * segmentation,
        "SQ": np.where(total > 0, segmentation, np.nan),
        "RQ": recognition,
    }
    return {name: mean_known(values) for name, values in quality.items()}


def instance_intervals(
    arrays: Mapping[str, AnyArray], categories: Sequence[str], rows: Indices, groups: Mapping[str, Sequence[str]]
) -> Intervals:
    """Return figure → interval for the figures of masks of objects.

    Args:
        arrays, categories: those of an `InstanceScore`.
        rows: manifest rows of all images, ascending.
        groups: name → categories, for `mask AP name`.
    """
    found: defaultdict[str, list[Doubles]] = defaultdict(list)
    if not len(rows):
        return {}
    for weights in samples(len(rows), AP_RESAMPLES):
        for name, values in resampled(arrays, categories, rows, weights, groups).items():
            found[name].append(values)
    return {name: interval(np.concatenate(parts)) for name, parts in found.items()}
