"""SAM2's mask decoder for many prompts of one image, with parter operations and less memory traffic.

A prompt has a few tokens, the image has thousands. The sam2 package projects the image to keys, queries and values for
every prompt. This module projects the tokens into the image's features instead, which computes the same attention: with
q = W a and k = V x, q · k = (Vᵀ W a) · x. Before the first layer, all prompts share one image. A transposed convolution
whose stride equals its kernel size is one matrix product per place. Its outputs stay grouped by place, and only the
final masks are rearranged to (height, width).

Shapes: P prompts, T tokens, N = h · w places, C channels, H heads of d channels, M masks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UPSCALED_BYTES = 8 << 20  # bytes of the prompts that a CPU upscales at once, about the size of its caches
# type that holds two values
PAIRS = {torch.float32: torch.int64, torch.bfloat16: torch.int32, torch.float16: torch.int32}


class MaskDecoder:
    """The matrix products of sam2's `MaskDecoder`, for a model with frozen weights.

    Args:
        decoder: sam2's mask decoder, with fp32 weights. Its other modules are used unchanged.
        dtype: type in which products are computed.
    """

    def __init__(self, decoder: Any, dtype: torch.dtype) -> None:
        self._decoder, transformer = decoder, decoder.transformer
        self._layers = [
            (
                layer,
                _TokenToImage(layer.cross_attn_token_to_image, dtype),
                _ImageToToken(layer.cross_attn_image_to_token, dtype),
            )
            for layer in transformer.layers
        ]
        self._last = _TokenToImage(transformer.final_attn_token_to_image, dtype)
        first, _, _, second, _ = decoder.output_upscaling
        self._upscale = [_product_of(convolution, dtype) for convolution in (first, second)]

    def transform(self, image: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the same result as `TwoWayTransformer` of sam2.

        Args:
            image: (1 or P, N, C) image features; 1 if equal for all prompts.
            position: (1, N, C) position encoding.
            tokens: (P, T, C) prompt tokens.

        Returns:
            tokens (P, T, C), image (P, N, C).
        """
        queries, keys = tokens, image
        for layer, to_image, to_tokens in self._layers:
            if layer.skip_first_layer_pe:
                queries = layer.self_attn(q=queries, k=queries, v=queries)
            else:
                positioned = queries + tokens
                queries = queries + layer.self_attn(q=positioned, k=positioned, v=queries)
            queries = layer.norm1(queries)
            placed = keys + position
            queries = layer.norm2(queries + to_image(queries + tokens, placed, keys))
            queries = layer.norm3(queries + layer.mlp(queries))
            keys = layer.norm4(to_tokens(keys, placed, queries + tokens, queries))
        queries = queries + self._last(queries + tokens, keys + position, keys)
        return self._decoder.transformer.norm_final_attn(queries), keys

    def draw(self, tokens: Tensor, image: Tensor, finer: Tensor, finest: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute mask logits.

        Args:
            tokens: (P, M, C) mask tokens after `transform`.
            image: (P, N, C) image features after `transform`.
            finer, finest: image features at 2 and 4 times the resolution, as `laid_by_place` returns them.
            grid: (h, w) of the places.

        Returns:
            (P, M, 4 h, 4 w).
        """
        _, norm, act, _, last = self._decoder.output_upscaling
        (first, first_bias), (second, second_bias) = self._upscale
        mlps = self._decoder.output_hypernetworks_mlps
        weights = torch.stack([mlp(tokens[:, m]) for m, mlp in enumerate(mlps)], dim=1)
        step = len(image) if image.is_cuda else max(1, UPSCALED_BYTES // (finest.numel() * finest.element_size()))
        parts = []
        for part, mixed in zip(torch.split(image, step), torch.split(weights, step), strict=True):
            up = F.linear(part, first, first_bias).view(len(part), -1, *finer.shape[1:]) + finer  # (P, N, 4, C / 4)
            up = act(F.layer_norm(up, up.shape[-1:], norm.weight, norm.bias, norm.eps))
            up = F.linear(up, second, second_bias).view(len(part), -1, *finest.shape[1:])  # (P, N, 16, C / 8)
            up = last(up + finest)
            parts.append(mixed @ up.flatten(1, 2).transpose(1, 2))  # (P, M, N · 16)
        return _as_masks(torch.cat(parts), grid)


class _TokenToImage:
    """Attention of the tokens to the image, equal to `attention(q=queries, k=placed, v=keys)`.

    The bias of the keys is constant over the places, so it cancels in the softmax.
    """

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        wq, bq = _by_head(attention.q_proj, attention.num_heads)
        wk, _ = _by_head(attention.k_proj, attention.num_heads)
        wv, _ = _by_head(attention.v_proj, attention.num_heads)
        wo = attention.out_proj.weight.detach().unflatten(1, (attention.num_heads, -1))  # (C, H, d)
        scale = wq.shape[1] ** -0.5
        into = scale * torch.einsum("hdc,hde->hce", wk, wq).flatten(0, 1)
        into_bias = scale * torch.einsum("hdc,hd->hc", wk, bq).flatten()
        back = torch.einsum("chd,hde->che", wo, wv).flatten(1)
        back_bias = attention.out_proj(attention.v_proj.bias).detach()
        self._into, self._into_bias = into.to(dtype), into_bias.to(dtype)  # (H · C, C)
        self._back, self._back_bias = back.to(dtype), back_bias.to(dtype)  # (C, H · C)

    def __call__(self, queries: Tensor, placed: Tensor, keys: Tensor) -> Tensor:
        """Return (P, T, C).

        Args:
            queries: (P, T, C) tokens with positions.
            placed, keys: (1 or P, N, C) image features with and without positions.
        """
        count, tokens, channels = queries.shape
        projected = F.linear(queries, self._into, self._into_bias).view(count, -1, channels)  # (P, T · H, C)
        weights = (placed.expand(count, -1, -1) @ projected.transpose(1, 2)).softmax(dim=1)  # (P, N, T · H)
        attended = weights.transpose(1, 2).to(keys.dtype) @ keys.expand(count, -1, -1)
        return F.linear(attended.reshape(count, tokens, -1), self._back, self._back_bias)


class _ImageToToken:
    """Attention of the image to the tokens, equal to `keys + attention(q=placed, k=token_keys, v=values)`."""

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        self._heads = heads = attention.num_heads
        wq, bq = _by_head(attention.q_proj, heads)
        wk, bk = _by_head(attention.k_proj, heads)
        wv, bv = _by_head(attention.v_proj, heads)
        wo = attention.out_proj.weight.detach().unflatten(1, (heads, -1))
        scale = wq.shape[1] ** -0.5
        into = scale * torch.einsum("hdc,hde->hce", wq, wk).flatten(0, 1)
        into_bias = scale * torch.einsum("hdc,hd->hc", wq, bk).flatten()
        offset, offset_bias = scale * torch.einsum("hd,hdc->hc", bq, wk), scale * (bq * bk).sum(1)
        output = torch.einsum("chd,hde->hce", wo, wv).flatten(0, 1)
        shared_bias = attention.out_proj.bias.detach() / heads  # the attention weights of a head sum to one
        output_bias = (torch.einsum("chd,hd->hc", wo, bv) + shared_bias).flatten()
        self._into, self._into_bias = into.to(dtype), into_bias.to(dtype)  # (H · C, C)
        self._offset, self._offset_bias = offset.to(dtype), offset_bias.to(dtype)  # (H, C)
        self._output, self._output_bias = output.to(dtype), output_bias.to(dtype)  # (H · C, C)

    def __call__(self, keys: Tensor, placed: Tensor, token_keys: Tensor, values: Tensor) -> Tensor:
        """Return (P, N, C).

        Args:
            keys, placed: (1 or P, N, C) image features without and with positions.
            token_keys, values: (P, T, C) tokens with and without positions.
        """
        count, tokens, channels = token_keys.shape
        into = F.linear(token_keys, self._into, self._into_bias).view(count, -1, channels)  # (P, T · H, C)
        offset = F.linear(token_keys, self._offset, self._offset_bias).view(count, 1, -1)
        logits = torch.baddbmm(offset, placed.expand(count, -1, -1), into.transpose(1, 2))
        logits = logits.transpose(1, 2).contiguous()  # (P, T · H, N); softmax is fast with contiguous places
        weights = logits.view(count, tokens, -1).softmax(dim=1).view_as(logits)
        output = F.linear(values, self._output, self._output_bias).view(count, -1, channels)
        return torch.baddbmm(keys.expand(count, -1, -1), weights.to(output.dtype).transpose(1, 2), output)


def laid_by_place(fine: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rearrange a map (1, C, k h, k w), k a power of two, to the order of the upscaling: (N, k², C)."""
    x = fine[0].permute(1, 2, 0)  # (k h, k w, C)
    halvings = (x.shape[0] // grid[0]).bit_length() - 1
    twos = (2,) * halvings
    x = x.reshape(grid[0], *twos, grid[1], *twos, x.shape[-1])
    inner = [axis for k in range(halvings) for axis in (1 + k, halvings + 2 + k)]
    return x.permute(0, halvings + 1, *inner, x.dim() - 1).reshape(grid[0] * grid[1], -1, x.shape[-1])


def _as_masks(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rearrange (P, M, N · 16) in the order of `laid_by_place` to (P, M, 4 h, 4 w)."""
    # pairs of values that stay adjacent
    pairs = logits.view(PAIRS[logits.dtype]).view(*logits.shape[:2], *grid, 2, 2, 2)
    laid = pairs.permute(0, 1, 2, 4, 6, 3, 5).contiguous().view(logits.dtype)
    return laid.view(*logits.shape[:2], 4 * grid[0], 4 * grid[1])


def _by_head(projection: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """Return weight (H, d, C) and bias (H, d) of a projection."""
    weight, bias = projection.weight.detach(), projection.bias.detach()
    return weight.view(heads, -1, weight.shape[1]), bias.view(heads, -1)


def _product_of(convolution: nn.ConvTranspose2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a 2 × 2 transposed convolution with stride 2 as a product: weight (4 C', C), bias (4 C')."""
    assert convolution.bias is not None
    weight = convolution.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)
    return weight.to(dtype).contiguous(), convolution.bias.detach().repeat(4).to(dtype)
