"""ITACLIP's image views: the window as it is, without colour, blurred, and turned over, whose scores are mixed.

Source: m-arda-aydn/ITACLIP, `itaclip_segmentor.py`. Five passes instead of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur, rgb_to_grayscale

BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # pixels
UPRIGHT = 0.75  # weight of the views that are not turned over
FLIPS = ((-2,), (-1,))  # upside down; left and right


def mixed_logits(images: Tensor, features_of: Callable[[Tensor], Tensor], text: Tensor) -> Tensor:
    """Cosine logits of every patch, mixed over the views.

    The features of the upright views are averaged and not normalised again, as published; bilinear upsampling, which
    comes later, is linear and symmetric, so scores are turned back while they are still patches.

    Args:
        images: (B, 3, h, w) as CLIP takes them.
        features_of: images → (B, gh, gw, D), L2-normalised.
        text: (Q, D).

    Returns:
        (B, Q, gh, gw) float32.
    """
    grey = rgb_to_grayscale(images, num_output_channels=3)
    blurred = gaussian_blur(images, [BLUR_SIZE, BLUR_SIZE], [BLUR_SIGMA, BLUR_SIGMA])
    upright = torch.stack([features_of(view) for view in (images, grey, blurred)]).mean(dim=0)
    turned = [_score(features_of(images.flip(axes)), text).flip(axes) for axes in FLIPS]
    return UPRIGHT * _score(upright, text) + (1 - UPRIGHT) * torch.stack(turned).mean(dim=0)


def _score(features: Tensor, text: Tensor) -> Tensor:
    return torch.einsum("bhwd,qd->bqhw", features, text)
