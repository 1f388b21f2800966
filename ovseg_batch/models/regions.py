"""CorrCLIP's last block: a patch attends only inside its region, by how alike a second model finds the patches.

Three branches are summed before the projection: the last block's values, those of the mean of blocks below, and one
class token for every region. Source: zdk258/CorrCLIP, `CorrCLIPv1/open_clip/transformer.py`, tested against it. Theirs
takes the region with the smallest number for what is not segmented, even in a window that is segmented throughout;
here it is region 0 and no other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.models.vit import attend_from, embed, run_block

TEMPERATURE = 4.0  # multiplies the similarities before the softmax
SAME_REGION = 0.2  # regions whose mean features are no further apart than this are one
SPATIAL, SEMANTIC = 1.0, 0.5  # weights of the two branches beside the main one
BLOCKS_BELOW = {12: 5, 24: 12, 32: 28}  # depth → how many blocks the spatial branch averages; else depth - 4


def region_features(visual: Any, images: Tensor, correlation: Tensor, regions: Tensor) -> Tensor:
    """Patch features of one window, each patch informed by its region alone.

    Args:
        visual: an open_clip `VisionTransformer`.
        images: (1, 3, h, w) as CLIP takes them.
        correlation: (fh, fw, C) float32, L2-normalised features of a second model; their grid is the result's.
        regions: (h, w) int64, the region of each pixel; 0 where there is none.

    Returns:
        (fh, fw, D) float32, L2-normalised.
    """
    grid = correlation.shape[:2]
    merged = merge_regions(correlation, _nearest(regions, grid))
    weights = _weights(correlation.flatten(0, 1), merged.flatten())
    x = embed(visual, images)
    token_grid = (images.shape[2] // visual.patch_size[0], images.shape[3] // visual.patch_size[1])
    at_tokens = _nearest(merged, token_grid)
    member = at_tokens == torch.unique(at_tokens)[:, None, None]
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
    """Give regions that look alike one number: DBSCAN with every point a core point, on mean features.

    Distances are taken from the greatest similarity of any pair, as published.

    Args:
        correlation: (fh, fw, C), L2-normalised.
        regions: (fh, fw) int64, 0 where there is none.

    Returns:
        (fh, fw) int64, 0 where there was none.
    """
    numbers = [int(number) for number in torch.unique(regions) if number > 0]
    if len(numbers) < 2:
        return regions
    means = torch.stack([correlation[regions == number].mean(dim=0) for number in numbers])
    means = F.normalize(means, dim=1)
    similarity = means @ means.T
    close = (similarity.max() - similarity <= SAME_REGION).cpu().numpy()
    merged = regions.clone()
    for number, group in zip(numbers, _linked(close), strict=True):
        merged[regions == number] = group
    return merged


def _linked(close: np.ndarray[Any, Any]) -> list[int]:
    """Connected components, numbered from 1 in the order of their first member."""
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
    """(P, P) attention inside a region. A patch without a region attends to patches more similar than the mean."""
    similarity = features @ features.T
    free = regions == 0
    together = (regions[:, None] == regions[None]) & ~free[:, None]
    together |= (free[:, None] | free[None]) & (similarity > similarity.mean())
    together.fill_diagonal_(True)  # rounding must not leave a row empty
    return (similarity.masked_fill(~together, -torch.inf) * TEMPERATURE).softmax(dim=-1)


def _from_values(block: Any, x: Tensor, weights: Tensor, token_grid: tuple[int, int], grid: tuple[int, ...]) -> Tensor:
    """The block's values at the features' grid, weighted: (P, W)."""
    width = x.shape[-1]
    values = F.linear(block.ln_1(x), block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :])
    maps = values[:, 1:].transpose(1, 2).reshape(len(values), width, *token_grid)
    maps = F.interpolate(maps, grid, mode="bilinear", align_corners=False)
    out: Tensor = block.attn.out_proj(weights.to(maps.dtype) @ maps[0].flatten(1).T)
    return out


def _nearest(regions: Tensor, grid: tuple[int, ...]) -> Tensor:
    return F.interpolate(regions[None, None].float(), grid, mode="nearest")[0, 0].long()
