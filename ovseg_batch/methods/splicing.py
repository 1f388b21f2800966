"""Trident: splice the features of CLIP's windows, and aggregate them over the whole image with SAM's attention.

Source: Shi et al., Harnessing Vision Foundation Models for High-Performance, Training-Free Open Vocabulary Segmentation
(Trident), ICCV 2025; code: YuHengsss/Trident, trident.py and open_clip/transformer.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.types.arrays import Indices

BETA, GAMMA = 1.2, 3.0  # configs/base_config.py and trident.py: threshold in mean similarities, and sharpness
CEILING = 0.9  # `get_sam_sim`: highest threshold of the similarity of SAM's values
RAISED = 0.6  # `get_sam_sim`: threshold in place of a negative one


def mean_similarity(features: Tensor) -> float:
    """Return the mean cosine between all patches of a window, averaged over windows.

    Args:
        features: (N, n, C), L2-normalised.
    """
    return float(features.mean(dim=1).square().sum(dim=-1).mean())


def correlation(features: Tensor, mean: float) -> Tensor:
    """Return the attention between the patches of each window: softmax of the cosines above `BETA` times the mean.

    A patch that resembles none, not even itself, attends to itself alone. The published code returns NaN there.

    Args:
        features: (N, n, C), L2-normalised.
        mean: `mean_similarity` of all windows of the image.

    Returns:
        (N, n, n); rows sum to 1.
    """
    logits = (features @ features.transpose(1, 2) - mean * BETA) * GAMMA
    excluded = (logits < 0) & ~torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    return logits.masked_fill(excluded, float("-inf")).softmax(dim=-1)


def splice(parts: Tensor, boxes: Indices, size: tuple[int, int]) -> Tensor:
    """Return the mean of the windows' features where windows overlap.

    Args:
        parts: (N, C, gh, gw).
        boxes: (N, 4) y0, x0, y1, x1 in cells.
        size: (h, w) of the result in cells.

    Returns:
        (C, h, w).
    """
    total = parts.new_zeros(parts.shape[1], *size)
    count = parts.new_zeros(*size)
    for part, (y0, x0, y1, x1) in zip(parts, boxes.tolist(), strict=True):
        total[:, y0:y1, x0:x1] += part
        count[y0:y1, x0:x1] += 1
    return total / count


def global_attention(heads: Iterable[Tensor], values: Tensor, factor: float, raise_negative: bool) -> Tensor:
    """Return SAM's attention, averaged over heads, limited in each head to patches with similar values.

    Args:
        heads: (n, n) attention of each head.
        values: (H, n, d).
        factor: a cosine of two values must exceed this many times a patch's mean cosine over all heads and patches.
        raise_negative: whether `RAISED` replaces a negative threshold.

    Returns:
        (n, n) float32; rows sum to 1.
    """
    unit = F.normalize(values.float(), dim=-1)
    threshold = factor * (unit * unit.mean(dim=1, keepdim=True)).sum(dim=-1).mean(dim=0)
    if raise_negative:
        threshold = torch.where(threshold < 0, RAISED, threshold)
    threshold = threshold.clamp(max=CEILING)[:, None]
    total = torch.zeros(unit.shape[1], unit.shape[1], device=unit.device)
    for attention, own in zip(heads, unit, strict=True):
        total += torch.where(own @ own.T > threshold, attention, 0)
    return total / total.sum(dim=-1, keepdim=True)
