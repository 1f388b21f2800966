"""Variants of the attention in CLIP's last block. A variant is a row of `VARIANTS`; `attend` computes all of them.

Sources:
    csa: Wang et al., SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference, ECCV 2024.
    csa-joint: García García 2025, eq. 3.2.
    maskclip: Zhou et al., Extract Free Dense Labels from CLIP, ECCV 2022. The published code keeps the residual and the
        MLP of the last block. `maskclip-reduced` drops them, as later papers do in comparisons.
    clearclip: Lan et al., ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference, ECCV 2024.
    naclip: Hajimiri et al., Pay Attention to Your Neighbours: Training-Free Open-Vocabulary Semantic Segmentation, WACV
        2025.
    itaclip: Aydın et al., ITACLIP: Boosting Training-Free Semantic Segmentation with Image, Text, and Architectural
        Enhancements, CVPR Workshops 2025.

`v2` is a control: `maskclip` with a doubled attention output. The rows of SCLIP's weights sum to 2, and `v2` measures
the effect of that factor alone. Attention within regions (CorrCLIP) is in `models/regions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Variant:
    """The attention of a tapped block.

    Attributes:
        terms: pairs of q and k whose similarities are used. Without pairs, each token keeps its value.
        source: paper or document that defines the variant.
        joint: apply one softmax to the sum of the pairs. Otherwise each pair has a softmax, and the outputs are added.
        gain: factor of the attention output.
        residual, mlp: whether the block keeps its skip connection and its MLP.
        spread: standard deviation, in patches, of a Gaussian that is added to the similarities. 0: none.
        fused: earlier blocks, as fractions of the depth, whose attention weights make up half of the weights.
    """

    terms: tuple[str, ...]
    source: str
    joint: bool = False
    gain: float = 1.0
    residual: bool = True
    mlp: bool = True
    spread: float = 0.0
    fused: tuple[float, ...] = ()


VARIANTS: dict[str, Variant] = {
    "vanilla": Variant(("qk",), "CLIP"),
    "maskclip": Variant((), "MaskCLIP (Zhou et al., ECCV 2022)"),
    "maskclip-reduced": Variant((), "MaskCLIP as later papers compare with it", residual=False, mlp=False),
    "v2": Variant((), "control: MaskCLIP's attention, doubled", gain=2.0),
    "csa": Variant(("qq", "kk"), "SCLIP (Wang et al., ECCV 2024)"),
    "csa-joint": Variant(("qq", "kk"), "García García 2025, eq. 3.2", joint=True),
    "clearclip": Variant(("qq",), "ClearCLIP (Lan et al., ECCV 2024)", residual=False, mlp=False),
    "naclip": Variant(("kk",), "NACLIP (Hajimiri et al., WACV 2025)", residual=False, mlp=False, spread=5.0),
    "itaclip": Variant(("qq", "kk"), "ITACLIP (Aydın et al., CVPRW 2025)", mlp=False, fused=(7 / 12, 8 / 12, 10 / 12)),
}


def neighbourhood(grid: tuple[int, int], spread: float) -> Tensor:
    """Return NACLIP's prior: exp(-d² / 2 spread²) for patches at distance d, and 0 from and to the class token.

    Args:
        grid: rows and columns of patches.
        spread: standard deviation in patches.

    Returns:
        (1 + patches, 1 + patches) float32, to be added to the similarities before the softmax.
    """
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in grid)
    down = (rows[:, None] - rows[None]).square()
    across = (columns[:, None] - columns[None]).square()
    squared = down[:, None, :, None] + across[None, :, None, :]
    count = grid[0] * grid[1]
    return F.pad(torch.exp(-squared / (2 * spread**2)).reshape(count, count), (1, 0, 1, 0))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    variant: Variant,
    prior: Tensor | None = None,
    below: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Compute the attention of a variant with fused kernels.

    softmax(qqᵀ + kkᵀ) equals the attention of the concatenation [q, k] with itself. v is padded to the same width, so
    that fused kernels can be used.

    Args:
        q, k, v: (B, heads, N, d).
        prior: (N, N), added to the scaled similarities of every term; see `neighbourhood`.
        below: q and k of the blocks that `variant.fused` names. Their weights, averaged, are applied to this block's v.

    Returns:
        (B, heads, N, d), before the output projection. For `csa`, the weights of a row sum to 2, as published.
    """
    out = _weighted(q, k, v, variant, prior)
    if below:
        others = torch.stack([_weighted(*pair, v, variant, prior) for pair in below]).mean(dim=0)
        out = 0.5 * out + 0.5 * others
    return out if variant.gain == 1.0 else out * variant.gain


def _weighted(q: Tensor, k: Tensor, v: Tensor, variant: Variant, prior: Tensor | None) -> Tensor:
    parts = {"q": q, "k": k}
    scale = q.shape[-1] ** -0.5
    if not variant.terms:
        return v
    if variant.joint:
        queries = torch.cat([parts[term[0]] for term in variant.terms], dim=-1)
        keys = torch.cat([parts[term[1]] for term in variant.terms], dim=-1)
        padded = F.pad(v, (0, queries.shape[-1] - v.shape[-1]))
        joint = F.scaled_dot_product_attention(queries, keys, padded, attn_mask=prior, scale=scale)
        return joint[..., : v.shape[-1]]
    terms = [
        F.scaled_dot_product_attention(parts[t[0]], parts[t[1]], v, attn_mask=prior, scale=scale) for t in variant.terms
    ]
    return torch.stack(terms).sum(dim=0) if len(terms) > 1 else terms[0]
