"""CLIP's last block with the attention of another model: the parts that Trident needs.

Source: `custom_attn` in open_clip/transformer.py of YuHengsss/Trident.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.models.vit import embed, query_key_value, run_block


def correlated_values(visual: Any, images: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the values of the last block under the given attention, after its output projection.

    The residual connection, the feed-forward network and the class token are left out.

    Args:
        images: (B, 3, H, W), normalised.
        weights: (B, n, n) attention between the n = h · w cells of `grid`.
        grid: (h, w); the values are resized to it.

    Returns:
        (B, W, h, w).
    """
    blocks = visual.transformer.resblocks
    x = embed(visual, images)
    for block in blocks[:-1]:
        x = run_block(block, x)
    last = blocks[-1]
    own = (images.shape[2] // visual.patch_size[0], images.shape[3] // visual.patch_size[1])
    value = query_key_value(last, x)[2][:, :, 1:].transpose(1, 2).flatten(2)
    if own != grid:
        placed = value.transpose(1, 2).unflatten(2, own)
        value = F.interpolate(placed, grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    out = last.attn.out_proj(weights.to(value.dtype) @ value)
    found: Tensor = out.transpose(1, 2).unflatten(2, grid)
    return found
