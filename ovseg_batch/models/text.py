"""Run CLIP's text tower without padding, and once for the words that prompts begin with together.

Attention is causal and the end token is pooled. So the features of a token depend on the tokens before it only, and
tokens after the end of a prompt have no effect. The 80 templates of a word begin in a few ways, such as "a photo of a".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

TREE_TOKENS = 768  # of one pass: the templates of a word of several tokens fit, and attention stays a small part


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
    features = torch.cat([_encode(tower, tree) for tree in _trees([prompts[row] for row in order])])
    return features[torch.argsort(torch.tensor(order, device=tokens.device))]


@dataclass(slots=True)
class PrefixTree:
    """The distinct prefixes of some prompts. Each is a node: its last token, after the node of the prefix before it.

    Attributes:
        tokens: token of each node; parents come before their children.
        depths: position of the token in its prompts.
        lineages: the nodes of the prefix, from the first token to the node itself.
        ends: the node at which each prompt ends.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    lineages: list[list[int]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    nodes: dict[tuple[int, ...], int] = field(default_factory=dict)

    def add(self, prompt: tuple[int, ...]) -> None:
        """Add a prompt and the prefixes that the tree lacks."""
        lineage: list[int] = []
        for depth, token in enumerate(prompt):
            node = self.nodes.setdefault(prompt[: depth + 1], len(self.tokens))
            lineage = [*lineage, node]
            if node == len(self.tokens):
                self.tokens.append(token)
                self.depths.append(depth)
                self.lineages.append(lineage)
        self.ends.append(lineage[-1])

    def mask(self) -> Tensor:
        """Return (N, N) float32: 0 where the row's node attends to the column's, -inf elsewhere."""
        mask = torch.full((len(self.tokens), len(self.tokens)), -torch.inf)
        rows = torch.repeat_interleave(torch.arange(len(self.tokens)), torch.tensor(self.depths) + 1)
        mask[rows, torch.tensor([node for lineage in self.lineages for node in lineage])] = 0
        return mask


def _trees(prompts: Sequence[tuple[int, ...]]) -> Iterator[PrefixTree]:
    """Divide sorted prompts into trees of at most `TREE_TOKENS` nodes. A longer prompt has a tree of its own."""
    tree = PrefixTree()
    for prompt in prompts:
        if tree.ends and len(tree.tokens) + len(prompt) > TREE_TOKENS:
            yield tree
            tree = PrefixTree()
        tree.add(prompt)
    if tree.ends:
        yield tree


def _encode(tower: Any, tree: PrefixTree) -> Tensor:
    """Return the features (P, D) of the prompts of a tree."""
    device = tower.positional_embedding.device
    tokens, depths = torch.tensor(tree.tokens, device=device), torch.tensor(tree.depths, device=device)
    x = tower.token_embedding(tokens) + tower.positional_embedding[depths]
    x = tower.transformer(x[None], attn_mask=tree.mask().to(device))
    pooled: Tensor = tower.ln_final(x[0, torch.tensor(tree.ends, device=device)])
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
