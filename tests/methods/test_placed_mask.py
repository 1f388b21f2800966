"""Masks that are stored as the part in their box."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ovseg_batch.io import rle
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.runs import placed_counts
from ovseg_batch.methods.small_masks import small_mask
from ovseg_batch.types.arrays import Mask

HOLE = np.pad(np.pad(np.zeros((3, 4), bool), 1, constant_values=True), 2)
ONE_PIXEL = np.arange(20).reshape(4, 5) == 13
SIDES = st.tuples(st.integers(1, 14), st.integers(1, 14))
MASKS = arrays(bool, SIDES)


def scaled(mask: Mask, factors: tuple[int, int]) -> Mask:
    """Return a mask whose runs are longer, so that a number of its counts has several characters."""
    return np.kron(mask, np.ones(factors, bool))


@settings(deadline=None)
@given(MASKS, st.tuples(st.integers(1, 40), st.integers(1, 40)))
@example(np.zeros((4, 6), bool), (1, 1))
@example(np.ones((4, 6), bool), (30, 1))
@example(ONE_PIXEL, (1, 1))
@example(HOLE, (1, 1))
@example(~HOLE, (1, 1))
@example(HOLE[2:-2], (1, 1))
@example(HOLE[:, 2:-2], (1, 1))
def test_a_placed_mask_is_the_whole_one_in_its_bounding_box(small: Mask, factors: tuple[int, int]) -> None:
    mask = scaled(small, factors)
    size, counts = mask.shape, rle.encode(mask)
    placed = rle.decode_placed(counts, *size)
    assert np.array_equal(placed.whole(size), rle.decode(counts, *size))
    x0, y0, x1, y1 = placed.box
    assert [x0, y0, x1 - x0, y1 - y0] == rle.bounding_box(counts, *size)
    assert rle.encode_placed(placed, *size) == rle.encode_placed(PlacedMask(mask, 0, 0), *size) == counts
    assert rle.from_counts(rle.run_lengths(counts), *size) == counts
    across = placed_counts(placed.pixels, placed.left, placed.top, size)
    assert np.array_equal((np.arange(len(across)) % 2 == 1).repeat(across).reshape(size), mask)
    assert (across[1:-1] > 0).all()


@pytest.mark.parametrize("counts", [b"", b"P", b"01o", b"0000P", b"\xff\xfe"])
def test_counts_of_no_mask_are_an_error(counts: bytes) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        rle.decode_placed(counts, 2, 3)


def test_a_decoded_mask_holds_its_bounding_box_alone() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:14, 20:29] = np.random.default_rng(0).random((4, 9)) < 0.7
    mask[10, 20] = mask[13, 28] = True
    for placed in (PlacedMask.crop(mask), rle.decode_placed(rle.encode(mask), 40, 60)):
        assert placed.place == (slice(10, 14), slice(20, 29))
        assert np.array_equal(placed.whole((40, 60)), mask)
        assert np.array_equal(placed.shifted(5, 3).whole((50, 70))[3:43, 5:65], mask)
        painted = np.zeros((40, 60), np.uint8)
        placed.paint(painted, 7)
        assert np.array_equal(painted, mask * 7)
    assert not rle.decode_placed(rle.encode(np.zeros((4, 6), bool)), 4, 6).whole((4, 6)).any()


@settings(deadline=None)
@given(MASKS, st.tuples(st.integers(1, 30), st.integers(1, 30)), st.data())
@example(ONE_PIXEL, (90, 72), None)
@example(HOLE, (1, 1), None)
@example(np.zeros((4, 6), bool), (1, 1), None)
def test_a_small_mask_equals_the_resized_whole_one(
    drawn: Mask, factors: tuple[int, int], data: st.DataObject | None
) -> None:
    mask = scaled(drawn, factors)
    size: tuple[int, int] = mask.shape
    small = (4, 5) if data is None else data.draw(st.tuples(*(st.integers(1, min(side, 360)) for side in size)))
    resized = cv2.resize(mask.astype(np.uint8), small[::-1], interpolation=cv2.INTER_AREA)
    found = small_mask(rle.column_runs(rle.encode(mask), *size), small)
    assert np.array_equal(found.whole(small), resized > 0)
