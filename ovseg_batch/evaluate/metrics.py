"""How good label maps are: mIoU and accuracy summed over the data set, boundary F1 averaged over images.

Source: mIoU as mmseg's IoUMetric (intersections and unions summed over all images, 255 ignored, classes absent from
both skipped); boundary F1 as Csurka et al., BMVC 2013 (per class and image, tolerance 0.75 % of the diagonal).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]

IGNORE = 255
TOLERANCE = 0.0075  # of the image's diagonal


class SemanticScore:
    """Adds up images; the figures are computed at the end.

    `arrays` holds all there is of it, so that parts can be kept and added up later.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._confusion = np.zeros((classes, classes + 1), np.int64)  # truth × prediction, the last: unlabelled
        self._boundary = np.zeros(2)  # sum over images, images

    def add(self, prediction: Array, truth: Array) -> None:
        """One image.

        Args:
            prediction: (H, W) integer class, negative where nothing was said (which counts as wrong).
            truth: (H, W) integer class, 255 where it does not matter.
        """
        self._confusion += confusion(prediction, truth, self._classes)
        score = boundary_f1(prediction, truth)
        if not math.isnan(score):
            self._boundary += score, 1

    def arrays(self) -> dict[str, Array]:
        return {"confusion": self._confusion, "boundary": self._boundary}

    def merge(self, arrays: Mapping[str, Array]) -> None:
        """Add what another score of the same classes has counted."""
        self._confusion += arrays["confusion"]
        self._boundary += arrays["boundary"]

    def class_iou(self) -> Array:
        """(C,) IoU of each class, NaN where it is neither in the truth nor in a prediction."""
        return class_iou(self._confusion)

    def class_accuracy(self) -> Array:
        """(C,) share of each class's pixels that are right, NaN where it has none."""
        total = self._confusion.sum(axis=1).astype(float)
        share: Array = np.divide(np.diag(self._confusion), total, out=np.full(self._classes, np.nan), where=total > 0)
        return share

    def mean_iou(self, classes: Sequence[int] | None = None) -> float:
        """Return the mean over the given classes (None: all) that occur."""
        return _mean(self.class_iou() if classes is None else self.class_iou()[list(classes)])

    def mean_accuracy(self) -> float:
        """Mean over the classes of the truth of the share of their pixels that is right."""
        return _mean(self.class_accuracy())

    def accuracy(self) -> float:
        """Share of pixels that are right."""
        return float(np.diag(self._confusion).sum() / max(self._confusion.sum(), 1))

    def boundary_f1(self) -> float:
        """Mean over the images whose truth has a boundary; NaN where none has one."""
        return float(self._boundary[0] / self._boundary[1]) if self._boundary[1] else math.nan


def confusion(prediction: Array, truth: Array, classes: int) -> Array:
    """Pixels by true class and predicted one, the last column for nothing said: (C, C + 1) int64.

    Raises:
        ValueError: the maps are not of one size.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape}, truth is {truth.shape}")
    counted = truth != IGNORE
    said = np.where(prediction < 0, classes, prediction)[counted].astype(np.int64)
    index = truth[counted].astype(np.int64) * (classes + 1) + said
    return np.bincount(index, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def class_iou(counts: Array) -> Array:
    """(C,) IoU from a confusion matrix, NaN where a class is neither in the truth nor in a prediction."""
    hit = np.diag(counts).astype(float)
    union = counts.sum(axis=1) + counts[:, :-1].sum(axis=0) - hit
    iou: Array = np.divide(hit, union, out=np.full(len(counts), np.nan), where=union > 0)
    return iou


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def boundary_f1(prediction: Array, truth: Array) -> float:
    """Mean over the classes of the truth of the F1 between predicted and true boundary pixels, in [0, 1].

    A boundary pixel is right when one of the other map lies within 0.75 % of the image's diagonal (at least 1 pixel).
    Where 255 separates two classes, the true boundary is the middle of it, and a predicted one anywhere in it is right.
    Other boundaries that are predicted in pixels of 255, or at their edge, do not count.

    Returns:
        NaN where the truth has no boundary.
    """
    radius = max(1, math.ceil(TOLERANCE * math.hypot(*truth.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    known = truth != IGNORE
    if not known.any():
        return math.nan
    depth, filled = _nearest(known, truth)
    scores = []
    for label in np.unique(truth[known]):
        wanted, drawn = _boundary(filled == label), _boundary(prediction == label)
        if not wanted.any():
            continue
        found, right, counted = wanted & _grown(drawn, disc), drawn & _grown(wanted, disc), drawn
        if not known.all():
            far, _ = _nearest(drawn, depth)
            found |= wanted & (depth > 0) & (far <= radius + depth)
            off, half = _nearest(wanted, depth)
            right |= drawn & (half > 0) & (off <= radius + half)
            counted = right | (known & _boundary((prediction == label) | ~known))
        recall, precision = found.sum() / wanted.sum(), right.sum() / max(counted.sum(), 1)
        scores.append(2 * precision * recall / max(precision + recall, 1e-12))
    return float(np.mean(scores)) if scores else math.nan


def _nearest(mask: Array, values: Array) -> tuple[Array, Array]:
    """Return every pixel's distance to the nearest pixel of a mask, and the value there."""
    if not mask.any():
        return np.full(mask.shape, np.inf), np.zeros_like(values)
    distance, labels = cv2.distanceTransformWithLabels(
        (~mask).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(int(labels.max()) + 1, values.dtype)
    table[labels[mask]] = values[mask]
    return distance, table[labels]


def _grown(mask: Array, disc: Array) -> Array:
    grown: Array = np.asarray(cv2.dilate(mask.astype(np.uint8), disc)) > 0
    return grown


def _boundary(mask: Array) -> Array:
    """Pixels of the mask with a neighbour outside it; the image's own border is none."""
    eroded = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1)
    edge: Array = mask & (np.asarray(eroded) == 0)
    return edge
