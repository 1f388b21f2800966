"""Masks that are stored as the part in their box."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovseg_batch.io import rle
from ovseg_batch.methods.placed_mask import PlacedMask, positive


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 2**20),
    offset=st.floats(-2.0, 2.0),
)
def test_a_mask_equals_the_sign_of_the_resized_logits(
    shape: tuple[int, int], size: tuple[int, int], seed: int, offset: float
) -> None:
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset
    resized = torch.nn.functional.interpolate(logits[None, None], size, mode="bilinear")[0, 0]
    mask = torch.from_numpy(positive(logits, size).whole(size))
    clear = resized.abs() > 1e-4
    assert torch.equal(mask[clear], (resized > 0)[clear])


def test_a_mask_holds_its_bounding_box_alone() -> None:
    logits = torch.full((16, 16), -1.0)
    logits[4:6, 8:9] = 1.0
    mask = positive(logits, (160, 320))
    assert mask.place == (slice(40, 60), slice(160, 180)) and not positive(-logits.abs(), (160, 320)).pixels.size


def test_a_decoded_mask_holds_its_bounding_box_alone() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:14, 20:29] = np.random.default_rng(0).random((4, 9)) < 0.7
    mask[10, 20] = mask[13, 28] = True
    for placed in (PlacedMask.crop(mask), rle.decode_placed(rle.encode(mask), 40, 60)):
        assert placed.place == (slice(10, 14), slice(20, 29))
        assert np.array_equal(placed.whole((40, 60)), mask)
        assert np.array_equal(placed.shifted(5, 3).whole((50, 70))[3:43, 5:65], mask)
    assert not rle.decode_placed(rle.encode(np.zeros((4, 6), bool)), 4, 6).whole((4, 6)).any()
