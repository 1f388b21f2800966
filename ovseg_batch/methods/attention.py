"""What replaces CLIP's last attention: a variant is a row of data, one function runs them all.

Sources: SCLIP (`csa`), the thesis's eq. 3.2 (`csa-joint`), MaskCLIP of Zhou et al., ECCV 2022 (`maskclip`), ClearCLIP,
NACLIP and ITACLIP. MaskCLIP's own code keeps the residual and the MLP of a ViT's last block; later papers compare with
it without them, which is `maskclip-reduced`. Attention limited to regions (CorrCLIP) needs more than the block's own q
and k and is `models/regions.py`. `v2` is a control: `maskclip` with the attention's output doubled, because
SCLIP's rows sum to 2 and part of its gain may be that factor and not the correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Variant:
    """How a tapped block attends.

    `terms` are pairs over q and k whose similarities are used; none means each token keeps its own value. `joint`
    puts the pairs under one softmax; otherwise every pair has its own and the outputs add up. `gain` multiplies the
    attention output; `residual` and `mlp` say whether the block keeps its skip connection and its MLP. `spread` is the
    standard deviation, in patches, of a Gaussian that is added to the similarities so that neighbours count more; 0
    for none. `fused` are blocks below, as fractions of the depth, whose attention weights make half of the weights.
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
    "csa-joint": Variant(("qq", "kk"), "thesis, eq. 3.2", joint=True),
    "clearclip": Variant(("qq",), "ClearCLIP (Lan et al., ECCV 2024)", residual=False, mlp=False),
    "naclip": Variant(("kk",), "NACLIP (Hajimiri et al., WACV 2025)", residual=False, mlp=False, spread=5.0),
    "itaclip": Variant(("qq", "kk"), "ITACLIP (Aydın et al., CVPRW 2025)", mlp=False, fused=(7 / 12, 8 / 12, 10 / 12)),
}


def neighbourhood(grid: tuple[int, int], spread: float) -> Tensor:
    """NACLIP's prior: exp(-d² / 2 spread²) of the distance between two patches; nothing from or to the class token.

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
    """Attention of a variant, by fused kernels only.

    softmax(qqᵀ + kkᵀ) is the attention of the concatenation [q, k] with itself; v is padded to its width, which keeps
    the fused kernels usable.

    Args:
        q, k, v: (B, heads, N, d).
        prior: (N, N), added to the scaled similarities of every term; `neighbourhood`.
        below: q and k of the blocks that `variant.fused` names. Their weights, averaged, are applied to this block's v.

    Returns:
        (B, heads, N, d), before the output projection. For `csa` the weights of a row sum to 2, as published.
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
