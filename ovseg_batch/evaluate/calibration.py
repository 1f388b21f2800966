"""What confidence is worth: how right masks of a confidence are, and whether unsure images are the ones with errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ovseg_batch.methods.confidence import STEPS, step_of

Array = np.ndarray[Any, Any]

WORST = 0.1  # of the images, the least certain


class CalibrationScore:
    """Adds up images. `counts` (C, STEPS + 1, 2): pixels of masks of a class and confidence, and how many are right.

    `images` (N, 3): manifest row, doubt, and wrong and missed segments of each image, as panoptic quality counts
    them (NaN where the truth has no segments).
    """

    def __init__(self, classes: int) -> None:
        self._counts = np.zeros((classes, STEPS + 1, 2), np.int64)
        self._images: list[Array] = []

    def add_mask(self, label: int, confidence: float, pixels: int, right: int) -> None:
        self._counts[label, step_of(confidence)] += pixels, right

    def add_image(self, row: int, doubt: float, errors: float) -> None:
        """Add an image with its `ImageConfidence.doubt`."""
        self._images.append(np.array([[row, doubt, errors]]))

    def arrays(self) -> dict[str, Array]:
        return {"confidence counts": self._counts, "doubt of images": self.images()}

    def merge(self, arrays: Mapping[str, Array]) -> None:
        """Add what another score of the same classes has counted."""
        self._counts += arrays["confidence counts"]
        self._images.append(arrays["doubt of images"])

    def images(self) -> Array:
        return np.concatenate(self._images) if self._images else np.zeros((0, 3))

    def thresholds(self, names: Sequence[str], precision: float) -> dict[str, float]:
        """The least confidence with which each class's kept pixels are right at least so often.

        A class that never is gets 1, as far as confidence goes; one without masks is left out.
        """
        found = {}
        for name, counts in zip(names, self._counts, strict=True):
            kept = np.cumsum(counts[::-1], axis=0)[::-1]
            if kept[0, 0]:
                good = np.flatnonzero((kept[:, 1] >= precision * kept[:, 0]) & (kept[:, 0] > 0))
                found[name] = float(good[0]) / STEPS if len(good) else 1.0
        return found

    def precision_by_confidence(self, bins: int = 10) -> list[tuple[float, float, int]]:
        """(mean confidence, share of right pixels, pixels) of masks in equal ranges of confidence."""
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

    def risk_coverage(self) -> Array:
        """(N, 2): share of the images kept, the surest first, and errors an image among these."""
        ordered = self._surest_first()
        kept = np.arange(1, len(ordered) + 1)
        return np.stack([kept / max(len(ordered), 1), np.cumsum(ordered) / kept], axis=1)

    def worst_share(self) -> float:
        """The share of all errors that the least certain tenth of the images holds; NaN where there are none."""
        ordered = self._surest_first()
        few = max(1, round(WORST * len(ordered)))
        return float(ordered[-few:].sum() / ordered.sum()) if ordered.sum() else float("nan")

    def _surest_first(self) -> Array:
        images = self.images()
        known = images[~np.isnan(images[:, 2])]
        errors: Array = known[np.argsort(known[:, 1], kind="stable"), 2]
        return errors
