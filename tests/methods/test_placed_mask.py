"""Masks that are stored as the part in their box."""

from __future__ import annotations

import numpy as np

from ovseg_batch.io import rle
from ovseg_batch.methods.placed_mask import PlacedMask


def test_a_decoded_mask_holds_its_bounding_box_alone() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:14, 20:29] = np.random.default_rng(0).random((4, 9)) < 0.7
    mask[10, 20] = mask[13, 28] = True
    for placed in (PlacedMask.crop(mask), rle.decode_placed(rle.encode(mask), 40, 60)):
        assert placed.place == (slice(10, 14), slice(20, 29))
        assert np.array_equal(placed.whole((40, 60)), mask)
        assert np.array_equal(placed.shifted(5, 3).whole((50, 70))[3:43, 5:65], mask)
    assert not rle.decode_placed(rle.encode(np.zeros((4, 6), bool)), 4, 6).whole((4, 6)).any()
