"""Suppression of run-length encoded masks."""

from __future__ import annotations

import numpy as np
import pytest

from ovseg_batch.io import rle
from ovseg_batch.methods.selection import distinct


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.7, 1.0])
def test_suppression_is_that_of_all_pairs(limit: float) -> None:
    rng = np.random.default_rng(3)
    masks = []
    for _ in range(30):
        y, x, height, width = rng.integers((0, 0, 3, 3), (20, 20, 23, 23))
        masks.append(np.zeros((40, 50), bool))
        masks[-1][y : y + height, x : x + width] = True
    counts = [rle.encode(mask) for mask in masks]
    overlap, _ = rle.overlaps(counts, 40, 50)
    expected = distinct(-np.arange(30.0), overlap, limit)
    assert rle.distinct(counts, 40, 50, limit) == expected
    assert rle.distinct([], 40, 50, limit) == []
