"""Run CLIP's text tower without padding.

Attention is causal and the end token is pooled, so tokens after the end of a prompt have no effect.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn


def encode_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Return the text features of a CLIP model. Where the tower allows it, prompts of one length are computed together.

    Args:
        model: a model of open_clip.
        tokens: (P, context) token ids; the end token has the highest id of a prompt.

    Returns:
        (P, D), not normalised. Towers that attend to their padding run at full length in open_clip's code.
    """
    tower = _causal_tower(model)
    if tower is None:
        full: Tensor = model.encode_text(tokens)
        return full
    lengths, order = torch.sort(tokens.argmax(dim=-1).cpu() + 1, stable=True)
    distinct, counts = lengths.unique_consecutive(return_counts=True)
    groups = zip(order.split(counts.tolist()), distinct.tolist(), strict=True)
    features = torch.cat([_encode(tower, tokens[rows, :length]) for rows, length in groups])
    return features[torch.argsort(order)]


def _encode(tower: Any, tokens: Tensor) -> Tensor:
    """Return the features (P, D) of prompts (P, L) that end with their last token."""
    length = tokens.shape[1]
    x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    pooled: Tensor = tower.ln_final(x[:, -1])
    projection = tower.text_projection
    if projection is None:
        return pooled
    projected: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return projected


def _causal_tower(model: Any) -> Any | None:
    """Return the module with a causal text tower that pools the end token, or None."""
    if isinstance(model, CLIP):
        return model if model.text_pool_type == "argmax" and model.attn_mask is not None else None
    tower = getattr(model, "text", None)
    if not isinstance(tower, TextTransformer):
        return None
    plain = tower.pool_type == "argmax" and tower.cls_emb is None and not tower.use_pad_mask
    return tower if plain and tower.attn_mask is not None and not tower.output_tokens else None
