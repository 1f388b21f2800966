"""Panoptic quality. Segments match above an IoU of 0.5 (Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4).

The result equals `pq_compute` of panopticapi, which is not maintained and therefore no dependency. Void pixels of the
truth (255) are in no union. A wrong segment that lies mostly in void or in a crowd is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ovseg_batch.types.arrays import AnyArray, Doubles, Integers


class PanopticScore:
    """Sums over images. `counts` (C, 4): summed IoU of matches, matches, wrong segments, missed segments."""

    def __init__(self, classes: int) -> None:
        self._counts = np.zeros((classes, 4))

    def add(
        self,
        found: Integers,
        found_class: Sequence[int],
        truth: Integers,
        truth_class: Sequence[int],
        crowds: Sequence[int] = (),
    ) -> int:
        """Add one image. Return the number of wrong and missed segments.

        Args:
            found: (H, W) integer, segment of each pixel, 0 for none. Segment k has the class found_class[k - 1].
            truth: the same for the ground truth; 0 is void.
            crowds: segments of the truth that need no match: crowds, and pixels of no class, whose class is negative.
        """
        across, errors = len(found_class) + 1, 0
        index = truth.astype(np.int64).ravel() * across + found.ravel()
        shared = np.bincount(index, minlength=(len(truth_class) + 1) * across).reshape(-1, across)
        truth_area, found_area = shared.sum(axis=1), shared.sum(axis=0)
        matched_truth, matched_found = set(), set()
        for t, f in zip(*(part.tolist() for part in np.nonzero(shared)), strict=True):
            if t == 0 or f == 0 or t in crowds or truth_class[t - 1] != found_class[f - 1]:
                continue
            iou = shared[t, f] / (truth_area[t] + found_area[f] - shared[t, f] - shared[0, f])
            if iou > 0.5:
                self._counts[truth_class[t - 1], :2] += iou, 1
                matched_truth.add(t)
                matched_found.add(f)
        for t in range(1, len(truth_class) + 1):
            if t not in matched_truth and t not in crowds and truth_area[t]:
                self._counts[truth_class[t - 1], 3] += 1
                errors += 1
        for f in range(1, len(found_class) + 1):
            if f in matched_found or not found_area[f]:
                continue
            void = shared[0, f] + sum(shared[t, f] for t in crowds if truth_class[t - 1] == found_class[f - 1])
            if void / found_area[f] <= 0.5:
                self._counts[found_class[f - 1], 2] += 1
                errors += 1
        return errors

    def arrays(self) -> dict[str, AnyArray]:
        return {"panoptic": self._counts}

    def merge(self, arrays: Mapping[str, AnyArray]) -> None:
        """Add what another score of the same classes has counted."""
        self._counts += arrays["panoptic"]

    def class_quality(self) -> Doubles:
        """Return PQ, SQ and RQ of each class (C, 3); NaN for classes without segments."""
        iou, hit, wrong, missed = self._counts.T
        total = hit + 0.5 * wrong + 0.5 * missed
        nowhere = np.full(len(total), math.nan)
        recognition = np.divide(hit, total, out=nowhere.copy(), where=total > 0)
        segmentation = np.divide(iou, hit, out=np.zeros(len(total)), where=hit > 0)
        return np.stack([recognition * segmentation, np.where(total > 0, segmentation, math.nan), recognition], axis=1)

    def quality(self, classes: Sequence[int] | None = None) -> tuple[float, float, float]:
        """Return PQ, SQ and RQ, each the mean over the given classes (None: all) that occur."""
        rows = self.class_quality() if classes is None else self.class_quality()[list(classes)]
        known = rows[~np.isnan(rows[:, 0])]
        if not len(known):
            return math.nan, math.nan, math.nan
        pq, sq, rq = known.mean(axis=0)
        return float(pq), float(sq), float(rq)
