"""Calibration of confidence: precision of masks by confidence, and errors of images by doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ovseg_batch.methods.confidence import STEPS, step_of
from ovseg_batch.types.arrays import AnyArray, Doubles

WORST = 0.1  # share of the images, the least certain first


class CalibrationScore:
    """Sums over images.

    `counts` (C, STEPS + 1, 2) are the pixels and the correct pixels of masks, per class and bin of confidence. `images`
    (N, 3) are the manifest row, the doubt, and the number of wrong and missed segments of each image, as in panoptic
    quality (NaN without segments in the ground truth).
    """

    def __init__(self, classes: int) -> None:
        self._counts = np.zeros((classes, STEPS + 1, 2), np.int64)
        self._images: list[Doubles] = []

    def add_mask(self, label: int, confidence: float, pixels: int, right: int) -> None:
        self._counts[label, step_of(confidence)] += pixels, right

    def add_image(self, row: int, doubt: float, errors: float) -> None:
        """Add an image with its `ImageConfidence.doubt`."""
        self._images.append(np.array([[row, doubt, errors]]))

    def arrays(self) -> dict[str, AnyArray]:
        return {"confidence counts": self._counts, "doubt of images": self.images()}

    def merge(self, arrays: Mapping[str, AnyArray]) -> None:
        """Add the counts of another score of the same classes."""
        self._counts += arrays["confidence counts"]
        self._images.append(arrays["doubt of images"])

    def images(self) -> Doubles:
        return np.concatenate(self._images) if self._images else np.zeros((0, 3))

    def thresholds(self, names: Sequence[str], precision: float) -> dict[str, float]:
        """Return the least confidence per class with which the kept pixels reach a precision.

        A class that never reaches it gets 1, the maximum. Classes without masks are missing.
        """
        found = {}
        for name, counts in zip(names, self._counts, strict=True):
            kept = np.cumsum(counts[::-1], axis=0)[::-1]
            if kept[0, 0]:
                good = np.flatnonzero((kept[:, 1] >= precision * kept[:, 0]) & (kept[:, 0] > 0))
                found[name] = float(good[0]) / STEPS if len(good) else 1.0
        return found

    def precision_by_confidence(self, bins: int = 10) -> list[tuple[float, float, int]]:
        """Return (mean confidence, share of correct pixels, pixels) of masks in equal ranges of confidence."""
        counts = self._counts.sum(axis=0)
        place = np.minimum(np.arange(STEPS + 1) * bins // STEPS, bins - 1)
        found = []
        for k in range(bins):
            part = counts[place == k]
            pixels, right = part.sum(axis=0).tolist()
            if pixels:
                centres = (np.flatnonzero(place == k) + 0.5) / STEPS
                found.append((float((centres * part[:, 0]).sum() / pixels), right / pixels, pixels))
        return found

    def risk_coverage(self) -> Doubles:
        """Return (N, 2): share of images kept, the most certain first, and mean errors per kept image."""
        ordered = self._surest_first()
        kept = np.arange(1, len(ordered) + 1)
        return np.stack([kept / max(len(ordered), 1), np.cumsum(ordered) / kept], axis=1)

    def worst_share(self) -> float:
        """Return the share of all errors in the least certain tenth of the images; NaN without errors."""
        ordered = self._surest_first()
        few = max(1, round(WORST * len(ordered)))
        return float(ordered[-few:].sum() / ordered.sum()) if ordered.sum() else float("nan")

    def _surest_first(self) -> Doubles:
        images = self.images()
        known = images[~np.isnan(images[:, 2])]
        errors: Doubles = known[np.argsort(known[:, 1], kind="stable"), 2]
        return errors
