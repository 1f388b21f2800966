"""Suppression and overlaps of run-length encoded masks."""

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


def test_overlaps_of_two_lists_are_those_of_all_pairs() -> None:
    counts = [rle.encode(np.pad(np.ones((6, 6), bool), ((k, 34 - k), (0, 44)))) for k in (0, 3, 20)]
    overlap, inside = rle.overlaps_with(counts[:2], counts[1:], 40, 50)
    assert np.allclose(overlap, [[1 / 3, 0.0], [1.0, 0.0]]) and np.allclose(inside, [[0.5, 0.0], [1.0, 0.0]])
    assert np.array_equal(rle.overlaps(counts, 40, 50)[0][:2, 1:], overlap)
    assert rle.overlaps_with([], counts, 40, 50)[0].shape == (0, 3)
    assert rle.overlaps_with(counts, [], 40, 50)[1].shape == (3, 0)
