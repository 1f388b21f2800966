"""Pixel-adaptive mask refinement: smooth scores between similar neighbours, and keep edges.

Source: Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels, CVPR 2020, with the
parameters of SCLIP, NACLIP and ITACLIP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (8, 16)  # as in SCLIP
SHARPNESS = 0.1
MEAN, SPREAD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)  # CLIP's, as SCLIP's code rounds them


def pamr(image: Tensor, scores: Tensor, iterations: int, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Replace the scores of each pixel by the weighted mean of its neighbours' scores, repeatedly.

    The weights are a softmax over the neighbours of the mean over channels of -|difference| / (0.1 · standard deviation
    of the channel in the neighbourhood).

    Args:
        image: (K, H, W) float32, any scale.
        scores: (C, H, W) float32.
        iterations: number of repetitions; 0 changes nothing.
        dilations: distances in pixels of the neighbours. Each distance adds eight neighbours.

    Returns:
        (C, H, W) float32.
    """
    if iterations == 0:
        return scores
    around = torch.stack(list(_neighbours(image, dilations, centre=True)))
    spread = around.std(dim=0)
    del around
    likeness = [
        (-(image - other).abs() / (1e-8 + SHARPNESS * spread)).mean(dim=0) for other in _neighbours(image, dilations)
    ]
    weights = torch.softmax(torch.stack(likeness), dim=0)
    for _ in range(iterations):
        flowed = torch.zeros_like(scores)
        for weight, other in zip(weights, _neighbours(scores, dilations), strict=True):
            flowed.addcmul_(other, weight)
        scores = flowed
    return scores


def enlarged(pixels: Tensor, scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return pixels and scores at another size, as NACLIP and ITACLIP give them to PAMR.

    Where neighbours differ by rounding errors alone, the weights depend on them. So the pixels are normalised as in the
    published code, although the scale does not matter otherwise.

    Args:
        pixels: (3, h, w) float32 in [0, 255].
        scores: (C, h, w) float32.
        size: (H, W).
    """
    mean, spread = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (MEAN, SPREAD))
    normal = (pixels - mean) / spread
    large = [F.interpolate(part[None], size, mode="bilinear")[0] for part in (normal, scores)]
    return large[0], large[1]


def _neighbours(x: Tensor, dilations: Sequence[int], centre: bool = False) -> Iterator[Tensor]:
    """Yield `x` (C, H, W), shifted to each neighbour in turn. The border is replicated."""
    height, width = x.shape[-2:]
    for distance in dilations:
        padded = F.pad(x[None], [distance] * 4, mode="replicate")[0]
        for down in (0, distance, 2 * distance):
            for across in (0, distance, 2 * distance):
                if centre or (down, across) != (distance, distance):
                    yield padded[:, down : down + height, across : across + width]
