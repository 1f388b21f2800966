"""Run CLIP's text tower without padding, and once for the words that prompts begin with together.

Attention is causal and the end token is pooled. So the features of a token depend on the tokens before it only, and
tokens after the end of a prompt have no effect. The 80 templates of a word begin in a few ways, such as "a photo of a".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

PREFIXES = 768  # of one pass: the templates of a word of several tokens fit, and attention stays a small part

Prompt = tuple[int, ...]  # token ids, from the start token to the end token, or the first of them


def encode_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Return the text features of a CLIP model. Where the tower allows it, equal beginnings are computed once.

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
    lengths = (tokens.argmax(dim=-1) + 1).tolist()
    prompts = [tuple(row[:length]) for row, length in zip(tokens.tolist(), lengths, strict=True)]
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    features = torch.cat([_encode(tower, group) for group in _groups([prompts[row] for row in order])])
    return features[torch.argsort(torch.tensor(order, device=tokens.device))]


def _groups(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Divide sorted prompts into groups of at most `PREFIXES` distinct prefixes. A longer prompt is a group alone."""
    group: list[Prompt] = []
    prefixes: set[Prompt] = set()
    for prompt in prompts:
        if group and len(prefixes) + len(prompt) > PREFIXES:
            yield group
            group, prefixes = [], set()
        group.append(prompt)
        prefixes.update(prompt[:end] for end in range(1, len(prompt) + 1))
    if group:
        yield group


def _encode(tower: Any, prompts: Sequence[Prompt]) -> Tensor:
    """Return the features (P, D) of prompts that end with their last token.

    The tower computes a sequence of all distinct prefixes, each represented by its last token. A mask lets each attend
    to the prefixes of itself.
    """
    device = tower.positional_embedding.device
    nodes: dict[Prompt, int] = {}
    for prompt in prompts:
        for end in range(1, len(prompt) + 1):
            nodes.setdefault(prompt[:end], len(nodes))
    tokens = torch.tensor([prefix[-1] for prefix in nodes], device=device)
    positions = torch.tensor([len(prefix) - 1 for prefix in nodes], device=device)
    attended = [(node, nodes[prefix[:end]]) for prefix, node in nodes.items() for end in range(1, len(prefix) + 1)]
    mask = torch.full((len(nodes), len(nodes)), -torch.inf)
    mask[tuple(torch.tensor(attended).T)] = 0
    x = tower.token_embedding(tokens) + tower.positional_embedding[positions]
    x = tower.transformer(x[None], attn_mask=mask.to(device))
    pooled: Tensor = tower.ln_final(x[0, torch.tensor([nodes[prompt] for prompt in prompts], device=device)])
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
