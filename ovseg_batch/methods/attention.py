"""What replaces CLIP's last attention: a variant is a row of data, one function runs them all.

Sources: SCLIP (`csa`), the thesis's eq. 3.2 (`csa-joint`), MaskCLIP of Zhou et al., ECCV 2022 (`maskclip`). `v` and
`v2` are controls: v-only with SCLIP's residual and MLP, once as it is and once doubled, because SCLIP's rows sum to 2
and part of its gain may be that factor and not the correlation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Variant:
    """How a tapped block attends.

    `terms` are pairs over q and k whose similarities are used; none means each token keeps its own value. `joint`
    puts the pairs under one softmax; otherwise every pair has its own and the outputs add up. `gain` multiplies the
    attention output; `residual` and `mlp` say whether the block keeps its skip connection and its MLP.
    """

    terms: tuple[str, ...]
    source: str
    joint: bool = False
    gain: float = 1.0
    residual: bool = True
    mlp: bool = True


VARIANTS: dict[str, Variant] = {
    "vanilla": Variant(("qk",), "CLIP"),
    "maskclip": Variant((), "MaskCLIP (Zhou et al., ECCV 2022)", residual=False, mlp=False),
    "v": Variant((), "control: v only, residual and MLP kept"),
    "v2": Variant((), "control: v only, doubled", gain=2.0),
    "csa": Variant(("qq", "kk"), "SCLIP (Wang et al., ECCV 2024)"),
    "csa-joint": Variant(("qq", "kk"), "thesis, eq. 3.2", joint=True),
}


def attend(q: Tensor, k: Tensor, v: Tensor, variant: Variant) -> Tensor:
    """Attention of a variant, by fused kernels only.

    softmax(qqᵀ + kkᵀ) is the attention of the concatenation [q, k] with itself; v is padded to its width, which keeps
    the fused kernels usable.

    Args:
        q, k, v: (B, heads, N, d).

    Returns:
        (B, heads, N, d), before the output projection. For `csa` the weights of a row sum to 2, as published.
    """
    parts = {"q": q, "k": k}
    scale = q.shape[-1] ** -0.5
    if not variant.terms:
        out = v
    elif variant.joint:
        queries = torch.cat([parts[term[0]] for term in variant.terms], dim=-1)
        keys = torch.cat([parts[term[1]] for term in variant.terms], dim=-1)
        padded = F.pad(v, (0, queries.shape[-1] - v.shape[-1]))
        out = F.scaled_dot_product_attention(queries, keys, padded, scale=scale)[..., : v.shape[-1]]
    else:
        terms = [F.scaled_dot_product_attention(parts[t[0]], parts[t[1]], v, scale=scale) for t in variant.terms]
        out = torch.stack(terms).sum(dim=0) if len(terms) > 1 else terms[0]
    return out if variant.gain == 1.0 else out * variant.gain
