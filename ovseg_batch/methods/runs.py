"""Maps as runs of equal pixels: what a map says is counted by its runs, which are few where pixels are many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of pixels side by side in a row, in the order of pixels: the first one of each, as an index into the
    flattened map, and how many there are, (R,) int64 both."""

    starts: Array
    lengths: Array

    def sums(self, values: Array) -> Array:
        """The sum of `values` (H, W) in each run: (R,) float64."""
        return np.add.reduceat(values.ravel(), self.starts, dtype=np.float64)


def row_runs(*maps: Array) -> Runs:
    """The longest runs in which each of the maps, (H, W) all, has one value."""
    begins = np.zeros(maps[0].shape, bool)
    begins[:, :1] = True
    for values in maps:
        begins[:, 1:] |= values[:, 1:] != values[:, :-1]
    starts = np.flatnonzero(begins)
    return Runs(starts, np.diff(starts, append=begins.size))
