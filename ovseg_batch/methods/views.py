"""ITACLIP's image views: mix the scores of the original, grey, blurred and flipped window.

Source: Aydın et al., ITACLIP, CVPR Workshops 2025; code: m-arda-aydn/ITACLIP, `itaclip_segmentor.py`. It takes five
forward passes instead of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur, rgb_to_grayscale

BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # pixels
FLIPS = ((-2,), (-1,))  # vertical; horizontal


def mixed_logits(
    images: Tensor, features_of: Callable[[Tensor], Tensor], text: Tensor, upright_weight: float = 0.75
) -> Tensor:
    """Return the cosine logits of every patch, averaged over the views.

    As published, the mean of the upright views' features is not normalised again. Scores are flipped back before the
    upsampling, which is equivalent because bilinear upsampling is linear and symmetric.

    Args:
        images: (B, 3, h, w), normalised for CLIP.
        features_of: images → (B, gh, gw, D), L2-normalised.
        text: (Q, D).
        upright_weight: weight in [0, 1] of the views that are not flipped; the code's `img_eng_coefficient`.

    Returns:
        (B, Q, gh, gw) float32.
    """
    grey = rgb_to_grayscale(images, num_output_channels=3)
    blurred = gaussian_blur(images, [BLUR_SIZE, BLUR_SIZE], [BLUR_SIGMA, BLUR_SIGMA])
    upright = torch.stack([features_of(view) for view in (images, grey, blurred)]).mean(dim=0)
    turned = [_score(features_of(images.flip(axes)), text).flip(axes) for axes in FLIPS]
    return upright_weight * _score(upright, text) + (1 - upright_weight) * torch.stack(turned).mean(dim=0)


def _score(features: Tensor, text: Tensor) -> Tensor:
    return torch.einsum("bhwd,qd->bqhw", features, text)
