"""CorrCLIP's last block: patches attend within their region, weighted by similarities of a second model's features.

Three branches are summed before the projection: the values of the last block, the values of the mean of earlier blocks,
and one class token per region. Source: Zhang et al., CorrCLIP: Reconstructing Patch Correlations in CLIP for
Open-Vocabulary Semantic Segmentation, ICCV 2025. The results are tested against its code, zdk258/CorrCLIP,
`CorrCLIPv1/open_clip/transformer.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.models.vit import attend_from, embed, run_block
from ovseg_batch.types.arrays import Mask

TEMPERATURE = 4.0  # factor of the similarities before the softmax
SAME_REGION = 0.2  # regions are merged up to this distance of their mean features
SPATIAL, SEMANTIC = 1.0, 0.5  # weights of the two branches beside the main one
BLOCKS_BELOW = {12: 5, 24: 12, 32: 28}  # depth → number of blocks that the spatial branch averages; otherwise depth - 4


def region_features(
    visual: Any, images: Tensor, correlation: Tensor, regions: Tensor, smallest_is_none: bool = False
) -> Tensor:
    """Compute the patch features of one window. Each patch attends only to its region.

    Args:
        visual: an open_clip `VisionTransformer`.
        images: (1, 3, h, w), normalised for CLIP.
        correlation: (fh, fw, C) float32, L2-normalised features of a second model. The result has their grid.
        regions: (h, w) int64 on the CPU, region of each pixel; 0 for none.
        smallest_is_none: the region with the smallest number in the window counts as unsegmented, as in CorrCLIP's
            code. Otherwise only region 0 does.

    Returns:
        (fh, fw, D) float32, L2-normalised.
    """
    grid = correlation.shape[:2]
    regions = _nearest(regions, grid)
    if smallest_is_none:
        regions = regions.masked_fill(regions == regions.min(), 0)
    merged = merge_regions(correlation, regions)
    weights = _weights(correlation.flatten(0, 1), merged.flatten().to(correlation.device))
    x = embed(visual, images)
    token_grid = (images.shape[2] // visual.patch_size[0], images.shape[3] // visual.patch_size[1])
    at_tokens = _nearest(merged, token_grid)
    member = (at_tokens == torch.unique(at_tokens)[:, None, None]).to(correlation.device)
    allowed = F.pad(member.flatten(1), (1, 0), value=True)[None]
    tokens = x[:, :1].expand(-1, len(member), -1)
    blocks = visual.transformer.resblocks
    depth = len(blocks)
    first = depth - 2 - BLOCKS_BELOW.get(depth, depth - 4)
    below = []
    for index, block in enumerate(blocks[:-1]):
        tokens, x = attend_from(block, tokens, x, allowed), run_block(block, x)
        if first <= index <= depth - 3:
            below.append(x)
    main = _from_values(blocks[-1], x, weights, token_grid, grid)
    spatial = _from_values(blocks[-1], torch.stack(below).mean(dim=0), weights, token_grid, grid)
    spoken = attend_from(blocks[-1], tokens, x, allowed)[0]
    spread = F.interpolate(member[:, None].float(), grid, mode="nearest").flatten(1)
    semantic = spread.T @ spoken.float()
    branches = [visual.ln_post(branch) for branch in (main, spatial, semantic)]
    features = (branches[0] + SPATIAL * branches[1] + SEMANTIC * branches[2]) @ visual.proj
    return F.normalize(features.float(), dim=-1).view(*grid, -1)


def merge_regions(correlation: Tensor, regions: Tensor) -> Tensor:
    """Merge similar regions: DBSCAN on mean features, with every point as a core point.

    As published, distances are differences to the greatest similarity of any pair. A GPU is read once.

    Args:
        correlation: (fh, fw, C), L2-normalised.
        regions: (fh, fw) int64 on the CPU, 0 for none.

    Returns:
        (fh, fw) int64 on the CPU, new region numbers, 0 for none.
    """
    flat = regions.flatten()
    numbers, index, counts = torch.unique(flat, return_inverse=True, return_counts=True)
    first = int((numbers == 0).any())
    if len(numbers) - first < 2:
        return regions
    order = torch.argsort(index, stable=True).to(correlation.device)
    parts = correlation.flatten(0, 1)[order].split(counts.tolist())[first:]
    means = F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=1)
    similarity = means @ means.T
    close = (similarity.max() - similarity <= SAME_REGION).cpu().numpy()
    groups = torch.tensor([0] * first + _linked(close))
    return groups[index].view_as(regions)


def _linked(close: Mask) -> list[int]:
    """Return the connected components of a graph, numbered from 1 in the order of their first member."""
    group = [0] * len(close)
    for start in range(len(close)):
        if group[start]:
            continue
        number, todo = max(group) + 1, [start]
        group[start] = number
        while todo:
            for other in np.flatnonzero(close[todo.pop()]).tolist():
                if not group[other]:
                    group[other] = number
                    todo.append(other)
    return group


def _weights(features: Tensor, regions: Tensor) -> Tensor:
    """Return the attention weights (P, P) within regions.

    A patch without a region attends to patches of more than mean similarity.

    """
    similarity = features @ features.T
    free = regions == 0
    together = (regions[:, None] == regions[None]) & ~free[:, None]
    together |= (free[:, None] | free[None]) & (similarity > similarity.mean())
    together.fill_diagonal_(True)  # rounding could otherwise leave a row empty
    return (similarity.masked_fill(~together, -torch.inf) * TEMPERATURE).softmax(dim=-1)


def _from_values(block: Any, x: Tensor, weights: Tensor, token_grid: tuple[int, int], grid: tuple[int, ...]) -> Tensor:
    """Return the block's values at the grid of the features, weighted: (P, W)."""
    width = x.shape[-1]
    values = F.linear(block.ln_1(x), block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :])
    maps = values[:, 1:].transpose(1, 2).reshape(len(values), width, *token_grid)
    maps = F.interpolate(maps, grid, mode="bilinear", align_corners=False)
    out: Tensor = block.attn.out_proj(weights.to(maps.dtype) @ maps[0].flatten(1).T)
    return out


def _nearest(regions: Tensor, grid: tuple[int, ...]) -> Tensor:
    return F.interpolate(regions[None, None].float(), grid, mode="nearest")[0, 0].long()
