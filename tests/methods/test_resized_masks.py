"""Masks from the ends of their runs equal those of resized logits."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovseg_batch.io import rle
from ovseg_batch.methods.resized_masks import above


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 2**20),
    threshold=st.floats(-2.0, 2.0),
)
def test_a_mask_equals_the_resized_logits_above_the_threshold(
    shape: tuple[int, int], size: tuple[int, int], seed: int, threshold: float
) -> None:
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    resized = torch.nn.functional.interpolate(logits[None, None], size, mode="bilinear")[0, 0]
    runs, clear = above(logits, size, threshold), ((resized - threshold).abs() > 1e-4).numpy()
    mask = runs.placed().whole(size)
    assert np.array_equal(mask[clear], (resized > threshold).numpy()[clear])
    assert runs.area() == mask.sum()
    down = above(logits.T, size[::-1], threshold)
    counts = rle.from_counts(down.counts(), *size)
    decoded = rle.decode(counts, *size)
    assert np.array_equal(decoded[clear], mask[clear]) and counts == rle.encode(decoded)
    assert down.area() == decoded.sum() == rle.area(counts, *size)


def test_a_mask_holds_its_bounding_box_alone() -> None:
    logits = torch.full((16, 16), -1.0)
    logits[4:6, 8:9] = 1.0
    assert above(logits, (160, 320)).placed().place == (slice(40, 60), slice(160, 180))
    empty = above(-logits.abs(), (160, 320))
    assert (empty.area(), empty.counts().tolist(), empty.placed().pixels.size) == (0, [160 * 320], 0)
