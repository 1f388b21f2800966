"""Pairs of masks that two methods have found, agreement, and what remains of a mask behind others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ovseg_batch.methods.merging import agreed, pairs, visible
from ovseg_batch.methods.placed_mask import PlacedMask

SHARES = st.floats(0, 1)
SIZE = (10, 12)


def test_pairs_have_one_class_and_the_highest_overlap() -> None:
    overlap = np.array([[0.6, 0.9, 0.0], [0.7, 0.8, 0.5], [0.1, 0.1, 0.4]])
    same = ["car"] * 3
    assert pairs(overlap, same, same, 0.5) == {0: 1, 1: 0}
    assert pairs(overlap, same, same, 0.4) == {0: 1, 1: 0, 2: 2}
    assert pairs(overlap, same, same, 0.85) == {0: 1}
    assert pairs(overlap, ["car", "cat", "car"], ["cat", "car", "cat"], 0.5) == {0: 1, 1: 0}
    assert pairs(np.zeros((1, 1)), ["car"], ["car"], 0.0) == {}, "masks that share nothing are no pair"
    assert pairs(np.zeros((0, 2)), [], ["car", "car"], 0.5) == {}


def test_of_equal_pairs_the_earlier_masks_are_taken() -> None:
    assert pairs(np.full((2, 2), 0.7), ["car"] * 2, ["car"] * 2, 0.5) == {0: 0, 1: 1}


@given(SHARES, SHARES, SHARES)
def test_agreement_keeps_confidence_in_its_range_and_its_order(confidence: float, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert 0 <= agreed(confidence, low) <= agreed(confidence, high) <= confidence
    assert agreed(confidence, 1) == confidence
    assert agreed(confidence, 0) == pytest.approx(confidence / 2)


def box(x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def test_a_mask_loses_the_pixels_of_those_in_front_that_cover() -> None:
    front, middle, back = box(0, 0, 4, 4), box(2, 2, 4, 4), box(0, 0, 12, 10)
    placed = [PlacedMask.crop(one) for one in (front, middle, back)]

    def rest(*flags: tuple[bool, bool]) -> list[NDArray[np.bool_]]:
        given_masks = ((mask, *flag) for mask, flag in zip(placed, flags, strict=True))
        return [one.whole(SIZE) for one in visible(given_masks, SIZE)]

    exclusive = rest((True, True), (True, True), (True, True))
    assert np.array_equal(exclusive[1], middle & ~front) and np.array_equal(exclusive[2], back & ~front & ~middle)
    whole_things = rest((False, True), (False, True), (True, False))
    assert np.array_equal(whole_things[1], middle) and np.array_equal(whole_things[2], exclusive[2])
    assert not rest((True, True), (True, False), (True, False))[0].sum() - front.sum()
