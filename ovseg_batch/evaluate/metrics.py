"""How good label maps are: mIoU and accuracy summed over the data set, boundary F1 averaged over images.

Source: mIoU as mmseg's IoUMetric (intersections and unions summed over all images, 255 ignored, classes absent from
both skipped); boundary F1 as Csurka et al., BMVC 2013 (per class and image, tolerance 0.75 % of the diagonal).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]

IGNORE = 255
TOLERANCE = 0.0075  # of the image's diagonal


class SemanticScore:
    """Adds up images; the figures are asked for at the end."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._confusion = np.zeros((classes, classes + 1), np.int64)  # truth × prediction, the last: unlabelled
        self._boundary: list[float] = []

    def add(self, prediction: Array, truth: Array) -> None:
        """One image.

        Args:
            prediction: (H, W) integer class, negative where nothing was said (which counts as wrong).
            truth: (H, W) integer class, 255 where it does not matter.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"prediction is {prediction.shape}, truth is {truth.shape}")
        counted = truth != IGNORE
        said = np.where(prediction < 0, self._classes, prediction)[counted].astype(np.int64)
        index = truth[counted].astype(np.int64) * (self._classes + 1) + said
        self._confusion += np.bincount(index, minlength=self._confusion.size).reshape(self._confusion.shape)
        self._boundary.append(boundary_f1(prediction, truth))

    def class_iou(self) -> Array:
        """(C,) IoU of each class, NaN where it is neither in the truth nor in a prediction."""
        hit = np.diag(self._confusion).astype(float)
        union = self._confusion.sum(axis=1) + self._confusion[:, :-1].sum(axis=0) - hit
        iou: Array = np.divide(hit, union, out=np.full(self._classes, np.nan), where=union > 0)
        return iou

    def mean_iou(self, classes: Sequence[int] | None = None) -> float:
        """Mean over the classes asked for (None: all) that occur at all."""
        iou = self.class_iou()
        return float(np.nanmean(iou if classes is None else iou[list(classes)]))

    def accuracy(self) -> float:
        """Share of pixels that are right."""
        return float(np.diag(self._confusion).sum() / max(self._confusion.sum(), 1))

    def boundary_f1(self) -> float:
        return float(np.mean(self._boundary))


def boundary_f1(prediction: Array, truth: Array) -> float:
    """Mean over the classes of the truth of the F1 between predicted and true boundary pixels, in [0, 1].

    A boundary pixel is right when one of the other map lies within 0.75 % of the image's diagonal (at least 1 pixel).
    """
    radius = max(1, math.ceil(TOLERANCE * math.hypot(*truth.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    scores = []
    for label in np.unique(truth[truth != IGNORE]):
        wanted, drawn = _boundary(truth == label), _boundary(prediction == label)
        if not wanted.any():
            continue
        recall = (wanted & _grown(drawn, disc)).sum() / wanted.sum()
        precision = (drawn & _grown(wanted, disc)).sum() / max(drawn.sum(), 1)
        scores.append(2 * precision * recall / max(precision + recall, 1e-12))
    return float(np.mean(scores)) if scores else 1.0


def _grown(mask: Array, disc: Array) -> Array:
    grown: Array = np.asarray(cv2.dilate(mask.astype(np.uint8), disc)) > 0
    return grown


def _boundary(mask: Array) -> Array:
    """Pixels of the mask with a neighbour outside it; the image's own border is none."""
    eroded = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1)
    edge: Array = mask & (np.asarray(eroded) == 0)
    return edge
