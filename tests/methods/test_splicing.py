"""Trident's arrays: sizes, the correlation of windows, splicing, and the attention over the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovseg_batch.methods.splicing import (
    correlation,
    global_attention,
    mean_similarity,
    splice,
)
from ovseg_batch.methods.windows import long_side_size, spliced_size


@pytest.mark.parametrize(
    ("size", "expected"),
    {
        (448, 672): (448, 672),
        (448, 596): (464, 608),  # 596 to 608, and 448 in the same ratio to 457
        (672, 448): (672, 448),
        (336, 4000): (336, 4000),
        (100, 130): (336, 336),
    }.items(),
)
def test_sides_are_rounded_up_to_patches_and_no_side_is_smaller_than_a_window(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert spliced_size(*size, 16, 336) == expected


def test_sam_sees_the_longer_side_at_its_size() -> None:
    assert long_side_size(375, 499, 1024) == (770, 1024) and long_side_size(640, 480, 1024) == (1024, 768)


def test_patches_attend_to_patches_above_the_mean() -> None:
    features = F.normalize(torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    similarity = features @ features.transpose(1, 2)
    mean = mean_similarity(features)
    assert mean == pytest.approx(float(similarity.mean()), abs=1e-6)
    logits = (similarity - 1.2 * mean) * 3.0
    expected = torch.where(logits < 0, -torch.inf, logits).softmax(dim=-1)
    assert torch.allclose(correlation(features, mean), expected, atol=1e-6)


def test_patches_of_a_blank_image_attend_to_themselves() -> None:
    features = F.normalize(torch.ones(1, 4, 8), dim=-1)
    found = correlation(features, mean_similarity(features))
    assert torch.isfinite(found).all() and torch.allclose(found.sum(dim=-1), torch.ones(1, 4))


def test_windows_are_averaged_where_they_overlap() -> None:
    parts = torch.stack([torch.full((2, 2, 2), 1.0), torch.full((2, 2, 2), 3.0)])
    found = splice(parts, np.array([[0, 0, 2, 2], [0, 1, 2, 3]]), (2, 3))
    assert found[0].tolist() == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("raise_negative", [False, True])
def test_attention_is_kept_where_values_are_alike(raise_negative: bool) -> None:
    random = torch.Generator().manual_seed(2)
    heads = torch.rand(3, 6, 6, generator=random)
    values = torch.randn(3, 6, 4, generator=random)
    unit = F.normalize(values, dim=-1)
    similarity = unit @ unit.transpose(1, 2)
    threshold = 1.2 * similarity.mean(dim=(0, 2))
    if raise_negative:
        threshold[threshold < 0] = 0.6
    kept = torch.where(similarity > threshold.clamp(max=0.9)[None, :, None], heads, 0).mean(dim=0)
    expected = kept / kept.sum(dim=-1, keepdim=True)
    assert (similarity.mean(dim=(0, 2)) < 0).any()
    assert torch.allclose(global_attention(heads, values, 1.2, raise_negative), expected, atol=1e-6)
