"""Connected components of a label map, for all classes in one pass.

The cost does not depend on the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from ovseg_batch.methods.runs import Runs, row_runs
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.types.arrays import ClassMap, Indices, Integers, Mask


@dataclass(frozen=True, slots=True)
class Components:
    """8-connected components, numbered from 1 in raster order. Index 0 of the last three arrays is unused.

    Attributes:
        numbers: (H, W) unsigned, number of the component; 0 where the map has no class.
        labels: (N + 1,) int16, class.
        areas: (N + 1,) pixels.
        boxes: (N + 1, 4) x0, y0, x1, y1 in pixels.
        runs: the horizontal runs of the components.
        run_numbers: (R,) unsigned, component of each run.
    """

    numbers: Integers
    labels: ClassMap
    areas: Indices
    boxes: Indices
    runs: Runs
    run_numbers: Integers

    def within(self, which: Mask) -> Mask:
        """Return where some components (N + 1,) are: (H, W) bool."""
        chosen = which[self.run_numbers]
        return np.repeat(chosen, self.runs.lengths).reshape(self.numbers.shape)


def connected_components(label_map: Integers) -> Components:
    """Return the connected components of every class of an (H, W) int16 label map. `UNLABELLED` pixels have none."""
    numbers, count = cc3d.connected_components(label_map - UNLABELLED, connectivity=8, return_N=True)
    runs, (height, width) = row_runs(numbers), label_map.shape
    number = numbers.ravel()[runs.starts]
    labels = np.full(count + 1, UNLABELLED, np.int16)
    labels[number] = label_map.ravel()[runs.starts]
    areas = np.bincount(number, weights=runs.lengths, minlength=count + 1).astype(np.int64)
    areas[0] = 0
    y, left = np.divmod(runs.starts, width)
    boxes = np.zeros((count + 1, 4), np.int64)
    boxes[:, :2] = width, height
    np.minimum.at(boxes[:, 0], number, left)
    np.minimum.at(boxes[:, 1], number, y)
    np.maximum.at(boxes[:, 2], number, left + runs.lengths)
    np.maximum.at(boxes[:, 3], number, y + 1)
    return Components(numbers, labels, areas, boxes, runs, number)
