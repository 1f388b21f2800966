"""Metrics of label maps: mIoU and accuracy over the data set, boundary F1 averaged over images.

Sources: mIoU as `IoUMetric` of mmsegmentation (intersections and unions are summed over all images, ignored pixels and
classes in neither map are skipped); boundary F1 of Csurka et al., What is a good evaluation measure for semantic
segmentation?, BMVC 2013 (per class and image, tolerance 0.75 % of the diagonal).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ovseg_batch.types.arrays import AnyArray, Doubles, Indices, Integers, Mask, Numbers, Pixels, Scalar

IGNORE = -1  # class of ignored pixels of the truth
OTHER = -2  # class of pixels of the truth that are of no class; a prediction of a class is wrong there
TOLERANCE = 0.0075  # share of the image's diagonal


class SemanticScore:
    """Sums over images. `arrays` holds the complete state, so that partial sums can be stored and merged."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._confusion = np.zeros((classes + 1, classes + 1), np.int64)  # as `confusion` returns it
        self._boundary = np.zeros(2)  # sum over images, number of images

    def add(self, prediction: Integers, truth: Integers) -> tuple[Indices, float]:
        """Add one image. Return its confusion matrix and its boundary F1.

        Args:
            prediction: (H, W) integer class, negative where unlabelled, which counts as wrong.
            truth: (H, W) integer class, or `OTHER`. Pixels of other values are ignored.
        """
        truth = np.where(truth < self._classes, truth, np.int16(IGNORE))
        counts = confusion(prediction, truth, self._classes)
        self._confusion += counts
        score = boundary_f1(prediction, truth)
        if not math.isnan(score):
            self._boundary += score, 1
        return counts, score

    def arrays(self) -> dict[str, AnyArray]:
        return {"confusion": self._confusion, "boundary": self._boundary}

    def merge(self, arrays: Mapping[str, AnyArray]) -> None:
        """Add what another score of the same classes has counted."""
        self._confusion += arrays["confusion"]
        self._boundary += arrays["boundary"]

    def class_iou(self) -> Doubles:
        """Return the IoU of each class (C,), NaN for classes in neither the truth nor a prediction."""
        return class_iou(self._confusion)

    def class_accuracy(self) -> Doubles:
        """Return the share of correct pixels of each class (C,), NaN without pixels."""
        total, hit = self._confusion[:-1].sum(axis=1).astype(float), np.diag(self._confusion)[:-1]
        share: Doubles = np.divide(hit, total, out=np.full(self._classes, np.nan), where=total > 0)
        return share

    def mean_iou(self, classes: Sequence[int] | None = None) -> float:
        """Return the mean over the given classes (None: all) that occur."""
        return _mean(self.class_iou() if classes is None else self.class_iou()[list(classes)])

    def mean_accuracy(self) -> float:
        """Return the mean accuracy over the classes in the truth."""
        return _mean(self.class_accuracy())

    def accuracy(self) -> float:
        """Return the share of correct pixels."""
        return float(np.diag(self._confusion).sum() / max(self._confusion.sum(), 1))

    def boundary_f1(self) -> float:
        """Return the mean boundary F1 over images with a true boundary, NaN without such images."""
        return float(self._boundary[0] / self._boundary[1]) if self._boundary[1] else math.nan


def confusion(prediction: Integers, truth: Integers, classes: int) -> Indices:
    """Return the confusion matrix (C + 1, C + 1) int64: true × predicted class. The last are `OTHER` and unlabelled.

    Raises:
        ValueError: the maps have different sizes.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape}, truth is {truth.shape}")
    counted = _known(truth)
    predicted_class = np.where(prediction < 0, classes, prediction)[counted].astype(np.int64)
    index = np.where(truth == OTHER, classes, truth)[counted].astype(np.int64) * (classes + 1) + predicted_class
    return np.bincount(index, minlength=(classes + 1) ** 2).reshape(classes + 1, classes + 1)


def class_iou(counts: Indices) -> Doubles:
    """Return the IoU (C,) of a confusion matrix, NaN for classes in neither the truth nor a prediction."""
    hit = np.diag(counts)[:-1].astype(float)
    union = counts[:-1].sum(axis=1) + counts[:, :-1].sum(axis=0) - hit
    iou: Doubles = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
    return iou


def _mean(values: Doubles) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def boundary_f1(prediction: Integers, truth: Integers) -> float:
    """Return the mean F1 of predicted and true boundary pixels over the classes in the truth, in [0, 1].

    A boundary pixel is correct if the other map has one within 0.75 % of the image's diagonal (at least 1 pixel). Where
    ignored pixels separate two classes, the true boundary is its centre line, and a predicted boundary anywhere
    within is correct. Other predicted boundaries in or beside ignored pixels do not count. Returns NaN if the truth
    has no boundary.
    """
    radius = max(1, math.ceil(TOLERANCE * math.hypot(*truth.shape)))
    disc = np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)
    known = _known(truth)
    if not known.any():
        return math.nan
    depth, filled = _nearest(known, truth)
    scores = []
    for label in np.unique(truth[truth >= 0]):
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


def _known(truth: Integers) -> Mask:
    known: Mask = (truth >= 0) | (truth == OTHER)
    return known


def _nearest(mask: Mask, values: NDArray[Scalar]) -> tuple[Numbers, NDArray[Scalar]]:
    """Return every pixel's distance to the nearest pixel of a mask, and the value there."""
    if not mask.any():
        return np.full(mask.shape, np.inf), np.zeros_like(values)
    distance, labels = cv2.distanceTransformWithLabels(
        (~mask).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(int(labels.max()) + 1, values.dtype)
    table[labels[mask]] = values[mask]
    return np.asarray(distance, np.float32), table[labels]


def _grown(mask: Mask, disc: Pixels) -> Mask:
    grown: Mask = np.asarray(cv2.dilate(mask.astype(np.uint8), disc)) > 0
    return grown


def _boundary(mask: Mask) -> Mask:
    """Return the pixels of the mask with a neighbour outside of it. The border of the image does not count."""
    eroded = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1)
    edge: Mask = mask & (np.asarray(eroded) == 0)
    return edge
