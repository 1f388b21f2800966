"""Run-length encoded masks: suppression, overlaps, and the counts of COCO files."""

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


def test_run_lengths_of_coco_come_back() -> None:
    mask = np.random.default_rng(5).random((37, 23)) < 0.4
    counts = rle.encode(mask)
    for given in (counts.decode(), rle.run_lengths(counts).tolist()):
        assert rle.from_coco({"size": [37, 23], "counts": given}, 37, 23) == counts


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (rle.encode(np.ones((40, 50), bool)).decode()[:-1], "end within a number"),
        (rle.encode(np.ones((40, 50), bool)).decode() + "`", "end within a number"),
        ("", "end within a number"),
        ("0 ", "not between 0 and o"),
        ("0é", "not between 0 and o"),
        ("0" + "o" * 20 + "0", "more than 60 bits"),
        ("02", "do not add up"),
        (rle.encode(np.ones((40, 50), bool)).decode() + "1", "do not add up"),
        ("01O", "no text, and no list of whole numbers"),
        ([0, 2, 3], "do not add up"),
        ([0, 2000.0], "no text, and no list of whole numbers"),
        ([-1, 2001], "no text, and no list of whole numbers"),
        (None, "no text, and no list of whole numbers"),
    ],
)
def test_run_lengths_that_are_no_mask_are_refused(counts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.from_coco({"size": [40, 50], "counts": counts}, 40, 50)


def test_overlaps_of_two_lists_are_those_of_all_pairs() -> None:
    counts = [rle.encode(np.pad(np.ones((6, 6), bool), ((k, 34 - k), (0, 44)))) for k in (0, 3, 20)]
    overlap, inside = rle.overlaps_with(counts[:2], counts[1:], 40, 50)
    assert np.allclose(overlap, [[1 / 3, 0.0], [1.0, 0.0]]) and np.allclose(inside, [[0.5, 0.0], [1.0, 0.0]])
    assert np.array_equal(rle.overlaps(counts, 40, 50)[0][:2, 1:], overlap)
    assert rle.overlaps_with([], counts, 40, 50)[0].shape == (0, 3)
    assert rle.overlaps_with(counts, [], 40, 50)[1].shape == (3, 0)
