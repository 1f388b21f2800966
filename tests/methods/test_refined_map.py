"""Trident's refinement as arrays: maps at half the size, mask logits of a padded image, and the strongest class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovseg_batch.methods.refined_map import (
    halved_labels,
    halved_probabilities,
    padded_matrices,
    strongest_classes,
)


@pytest.mark.parametrize("size", [(40, 30), (41, 33)])
def test_half_the_size_is_that_of_torch(size: tuple[int, int]) -> None:
    random = np.random.default_rng(3)
    labels = random.integers(-1, 5, size).astype(np.int16)
    half = (size[0] // 2, size[1] // 2)
    expected = F.interpolate(torch.from_numpy(labels)[None, None].float(), half, mode="nearest")[0, 0]
    assert (halved_labels(labels) == expected.numpy()).all()
    whole = torch.from_numpy(random.random((4, *size), np.float32))
    down = F.interpolate(whole[None], half, mode="bilinear", align_corners=False)[0]
    found = halved_probabilities(lambda first, last: whole[:, first:last], size, [1, 3], step=7)
    assert torch.allclose(found.probabilities, down[[1, 3]], atol=1e-6)
    assert torch.allclose(found.highest, down.amax(dim=0), atol=1e-6)


def resized(logits: torch.Tensor, seen: tuple[int, int], *sizes: tuple[int, int]) -> torch.Tensor:
    found = F.interpolate(logits[None], (64, 64), mode="bilinear", align_corners=False)[..., : seen[0], : seen[1]]
    for size in sizes:
        found = F.interpolate(found, size, mode="bilinear", align_corners=False)
    return found[0]


def test_masks_of_a_padded_image_are_resized_as_three_times_in_turn() -> None:
    logits = torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(4))
    seen, given, size = (64, 42), (48, 32), (43, 29)
    down, across = padded_matrices(64, 16, (seen, given, size), logits.device)
    assert torch.allclose(down @ logits @ across.T, resized(logits, seen, given, size), atol=1e-5)


def test_a_pixel_gets_the_class_of_the_highest_product_and_keeps_its_own_outside_of_masks() -> None:
    random = torch.Generator().manual_seed(5)
    logits, of_class, size = torch.randn(5, 16, 16, generator=random), [0, 2, 2, 3, 0], (40, 40)
    probabilities = torch.rand(4, *size, generator=random)
    labels = np.full(size, 1, np.int16)
    resize = padded_matrices(64, 16, ((64, 64), size, size), logits.device)
    drawn = resized(logits, (64, 64), size, size)
    scores = torch.zeros(4, *size)
    for mask, label in zip(drawn, of_class, strict=True):
        scores[label] = torch.maximum(scores[label], torch.where(mask > 0, mask.sigmoid() * probabilities[label], 0))
    expected = np.where(scores.amax(dim=0) > 0, scores.argmax(dim=0), 1)
    found = strongest_classes(labels, lambda a, b: probabilities[:, a:b], logits, of_class, resize, step=9)
    assert (found != expected).mean() < 0.002 and (labels == 1).all()
    none = strongest_classes(labels, lambda a, b: probabilities[:, a:b], logits[:0], [], resize, step=9)
    assert (none == 1).all()
