"""Connected components of a label map, of all classes in one pass: a pass for each class would cost as many as there
are words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np

from ovseg_batch.methods.vocabulary import UNLABELLED

Array = np.ndarray[Any, Any]

STRIP_PIXELS = 4_000_000  # looked up at a time


@dataclass(frozen=True, slots=True)
class Components:
    """8-connected components, numbered from 1 in the order in which rows of pixels meet them.

    `numbers` is (H, W), unsigned, 0 where the map has no class. The others have a place for each number, of which 0
    is nothing: `labels` (N + 1,) int16, `areas` (N + 1,) pixels, `boxes` (N + 1, 4) x0, y0, x1, y1.
    """

    numbers: Array
    labels: Array
    areas: Array
    boxes: Array


def connected_components(label_map: Array) -> Components:
    """The components of every class of an (H, W) int16 label map, `UNLABELLED` where it has none."""
    numbers = cc3d.connected_components(label_map - UNLABELLED, connectivity=8)
    found = cc3d.statistics(numbers, no_slice_conversion=True)
    top, bottom, left, right = found["bounding_boxes"].astype(np.int64).T  # the last row and column lie inside
    labels = np.full(len(top), UNLABELLED, np.int16)
    step = max(1, STRIP_PIXELS // max(1, label_map.shape[1]))
    for first in range(0, label_map.shape[0], step):
        rows = slice(first, first + step)
        labels[numbers[rows]] = label_map[rows]
    areas = found["voxel_counts"].astype(np.int64)
    areas[0], labels[0] = 0, UNLABELLED
    return Components(numbers, labels, areas, np.stack([left, top, right + 1, bottom + 1], axis=1))
