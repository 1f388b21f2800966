"""Connected components of a label map, for all classes in one pass.

The cost follows the number of runs. It does not depend on the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ovseg_batch.methods.runs import RunMap
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.types.arrays import ClassMap, Indices, Mask


@dataclass(frozen=True, slots=True)
class Components:
    """8-connected components, numbered from 1 in raster order. Index 0 of the last three arrays is unused.

    Attributes:
        numbers: number of the component of each run; 0 where the map has no class.
        labels: (N + 1,) int16, class.
        areas: (N + 1,) pixels.
        boxes: (N + 1, 4) x0, y0, x1, y1 in pixels.
    """

    numbers: RunMap
    labels: ClassMap
    areas: Indices
    boxes: Indices

    def within_box(self, number: int, step: int = 1) -> Mask:
        """Return where a component is in its box.

        Args:
            number: of the component.
            step: distance of the compared pixels, in both directions. The first one is `step // 2` from the edge.

        Returns:
            (h, w) bool, one value for each compared pixel.
        """
        left, top, right, bottom = self.boxes[number].tolist()
        runs, width, offset = self.numbers.runs, self.numbers.size[1], step // 2
        chosen = self.numbers.values == number
        y, x = np.divmod(runs.starts[chosen], width)
        y, first = y - (top + offset), x - (left + offset)
        last = first + runs.lengths[chosen]
        height, width = bottom - top, right - left
        if step > 1:
            compared = y % step == 0
            y, first, last = y[compared] // step, -(-first[compared] // step), -(-last[compared] // step)
            height, width = len(range(offset, height, step)), len(range(offset, width, step))
        turns = np.empty(2 * len(y) + 2, np.int64)
        turns[0], turns[1:-1:2], turns[2:-1:2], turns[-1] = 0, y * width + first, y * width + last, height * width
        inside = np.zeros(len(turns) - 1, bool)
        inside[1::2] = True
        return np.repeat(inside, np.diff(turns)).reshape(height, width)


def connected_components(classes: RunMap, touching: tuple[Indices, Indices] | None = None) -> Components:
    """Return the connected components of every class of a map. `UNLABELLED` pixels have none.

    Args:
        classes: class of each run.
        touching: `classes.touching()`, if it is known.
    """
    earlier, later = classes.touching() if touching is None else touching
    values = classes.values
    equal = (values[earlier] == values[later]) & (values[earlier] != UNLABELLED)
    root = _roots(len(values), earlier[equal], later[equal])
    begins = (root == np.arange(len(root))) & (values != UNLABELLED)
    number = np.where(values == UNLABELLED, 0, begins.cumsum()[root])
    count, lengths = int(begins.sum()), classes.runs.lengths
    labels = np.full(count + 1, UNLABELLED, np.int16)
    labels[1:] = values[begins]
    areas = np.bincount(number, weights=lengths, minlength=count + 1).astype(np.int64)
    areas[0] = 0
    height, width = classes.size
    y, left = np.divmod(classes.runs.starts, width)
    boxes = np.zeros((count + 1, 4), np.int64)
    boxes[:, :2] = width, height
    np.minimum.at(boxes[:, 0], number, left)
    np.minimum.at(boxes[:, 1], number, y)
    np.maximum.at(boxes[:, 2], number, left + lengths)
    np.maximum.at(boxes[:, 3], number, y + 1)
    return Components(RunMap(classes.size, classes.runs, number), labels, areas, boxes)


def _roots(count: int, one: Indices, other: Indices) -> Indices:
    """Return the first node of the tree of each node: (count,).

    In each round every root joins its lowest neighbour, and paths are halved until they are flat.
    Source: Shiloach and Vishkin, "An O(log n) parallel connectivity algorithm".

    Args:
        count: number of nodes.
        one, other: (E,) the nodes of each edge.
    """
    parent = np.arange(count)
    while len(one):
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(above := parent[parent], parent):
            parent = above
        one, other = parent[one], parent[other]
        apart = one != other
        one, other = one[apart], other[apart]
    return parent
