"""Parts of open_clip's `VisionTransformer` that dense maps, mask tokens and regions use.

Shapes: B images, N = 1 + patches tokens with the class token first, W the width of the transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

QUICK = 1.702  # QuickGELU(x) = x · sigmoid(1.702 x) = SiLU(1.702 x) / 1.702


def embed(visual: Any, images: Tensor) -> Tensor:
    """Return the input of the first block: (B, 3, h, w) → (B, N, W). Sides need not be multiples of the patch."""
    x = visual.conv1(images)
    grid = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    first = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    position = resized_position(visual.positional_embedding, visual.grid_size, tuple(grid))
    embedded: Tensor = visual.ln_pre(torch.cat([first, x], dim=1) + position.to(x.dtype))
    return embedded


def resized_position(position: Tensor, trained: tuple[int, int], grid: tuple[int, ...]) -> Tensor:
    """Resize a position embedding to another grid: bicubic with scale_factor (g + 0.1) / g0, as in SCLIP and DINO."""
    if tuple(trained) == grid:
        return position
    patches = position[1:].view(*trained, -1).permute(2, 0, 1)[None].float()
    factors = [(new + 0.1) / old for new, old in zip(grid, trained, strict=True)]
    resized = F.interpolate(patches, scale_factor=factors, mode="bicubic", align_corners=False)
    assert tuple(resized.shape[-2:]) == grid
    return torch.cat([position[:1], resized[0].permute(1, 2, 0).flatten(0, 1).to(position.dtype)])


def run_block(block: Any, x: Tensor) -> Tensor:
    """Compute one residual block as trained: (B, N, W) → (B, N, W), equal to the block's `forward`.

    `nn.MultiheadAttention` uses non-contiguous tensors, which oneDNN copies together with the weights. In bf16 on a
    CPU, that takes ten times as long.
    """
    q, k, v = query_key_value(block, x)
    seen = F.scaled_dot_product_attention(q, k, v)
    x = x + block.ls_1(block.attn.out_proj(seen.transpose(1, 2).flatten(2)))
    moved: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return moved


def fuse_quick_gelu(visual: Any) -> None:
    """Replace QuickGELU by SiLU, which needs one memory pass and not three. The factor 1.702 moves into the weights."""
    for block in visual.transformer.resblocks:
        mlp: Any = block.mlp
        if isinstance(mlp.gelu, QuickGELU):
            with torch.no_grad():
                mlp.c_fc.weight.mul_(QUICK)
                mlp.c_fc.bias.mul_(QUICK)
                mlp.c_proj.weight.div_(QUICK)
            mlp.gelu = nn.SiLU()


def query_key_value(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v of a block: (B, heads, N, d) each."""
    q, k, v = (
        _heads(part, block.attn.num_heads)
        for part in F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
    )
    return q, k, v


def attend_from(
    block: Any, tokens: Tensor, x: Tensor, allowed: Tensor, query: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Compute one block for mask class tokens, which attend to the image's tokens but not vice versa.

    Source: Ding et al., Open-Vocabulary Universal Image Segmentation with MaskCLIP, ICML 2023.

    Args:
        block: a residual block.
        tokens: (B, M, W).
        x: (B, N, W) input of the block for the image's tokens.
        allowed: (B, M, N) bool, whether a mask token attends to an image token.
        query: replaces the query projection of the block (MasQCLIP's f_Q′).

    Returns:
        (B, M, W).
    """
    attn, width = block.attn, x.shape[-1]
    _, k, v = query_key_value(block, x)
    weight, bias = attn.in_proj_weight[:width], attn.in_proj_bias[:width]
    normed = block.ln_1(tokens)
    q = _heads(F.linear(normed, weight, bias) if query is None else query(normed), attn.num_heads)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None])
    tokens = tokens + block.ls_1(attn.out_proj(seen.transpose(1, 2).flatten(2)))
    moved: Tensor = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    return moved


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
