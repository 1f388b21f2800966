"""MaskCLIP's training-free post-processing of a dense prediction: prompt denoising and key smoothing.

Source: Zhou et al., Extract Free Dense Labels from CLIP, ECCV 2022; code: chongzhou96/MaskCLIP,
`maskclip_head.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 100.0  # logit scale of CLIP, as published
RULED_OUT = -100.0


def denoise_prompts(logits: Tensor, threshold: float) -> Tensor:
    """Exclude the classes whose probability is below the threshold in the whole image, because they only add noise.

    Args:
        logits: (B, C, h, w) cosine similarities.
        threshold: least maximum probability of a class; 0.5 as published.

    Returns:
        (B, C, h, w), `RULED_OUT` for excluded classes.
    """
    best = torch.softmax(logits * SCALE, dim=1).amax(dim=(-2, -1), keepdim=True)
    return torch.where(best < threshold, torch.full_like(logits, RULED_OUT), logits)


def smooth_by_keys(logits: Tensor, keys: Tensor, threshold: float) -> Tensor:
    """Replace the probabilities of uncertain patches by those of patches with similar keys.

    As in the published code, keys are normalised over the patches and not over their components, and the weights of a
    row do not sum to one.

    Args:
        logits: (B, C, h, w) cosine similarities.
        keys: (B, h·w, D) of the last block.
        threshold: patches with a lower maximum probability are replaced; 1 replaces all, as published.

    Returns:
        (B, C, h, w): probabilities of patches that are kept, weighted sums of probabilities for replaced patches.
    """
    batch, classes, height, width = logits.shape
    probabilities = torch.softmax(logits * SCALE, dim=1).flatten(2).transpose(1, 2)
    unit = F.normalize(keys, dim=1)
    smoothed = (unit @ unit.transpose(1, 2)) @ probabilities
    unsure = probabilities.amax(dim=-1, keepdim=True) < threshold
    return torch.where(unsure, smoothed, probabilities).transpose(1, 2).reshape(batch, classes, height, width)
