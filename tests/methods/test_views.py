"""ITACLIP's image views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ovseg_batch.methods.views import mixed_logits


def features_of(images: Tensor) -> Tensor:
    """Features of 2 x 2 cells: their mean colours."""
    return torch.nn.functional.avg_pool2d(images, images.shape[-1] // 2).permute(0, 2, 3, 1)


def scores(images: Tensor, weight: float) -> Tensor:
    return mixed_logits(images, features_of, torch.eye(3), weight)


def test_the_weight_divides_the_result_between_upright_and_flipped_views() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    upright, flipped = scores(images, 1.0), scores(images, 0.0)
    torch.testing.assert_close(flipped, features_of(images).permute(0, 3, 1, 2))  # flipped back: the image itself
    assert (upright - flipped).abs().max() > 0.01  # grey and blurred views
    for weight in (0.7, 0.75):
        torch.testing.assert_close(scores(images, weight), weight * upright + (1 - weight) * flipped)
    torch.testing.assert_close(mixed_logits(images, features_of, torch.eye(3)), scores(images, 0.75))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_grey_even_image_is_the_same_in_every_view(weight: float) -> None:
    images = torch.full((1, 3, 32, 32), 0.4)
    torch.testing.assert_close(scores(images, weight), torch.full((1, 3, 2, 2), 0.4), atol=1e-4, rtol=0)
