"""What the words of a vocabulary are to CLIP: one feature a query, from the cache where it has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovseg_batch.io.text_cache import cache_folder, text_embeddings
from ovseg_batch.methods.vocabulary import query_feature
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.zoo import ModelSpec
from ovseg_batch.store import fingerprint


def text_features(clip: DenseClip, spec: ModelSpec, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(T, D) float32 on the CPU, L2-normalised: one for each text, over all templates."""
    key = {"clip": spec.identity(), "tokenizer": clip.tokenizer_id, "templates": list(templates)}
    embeddings = text_embeddings(
        list(dict.fromkeys(texts)),
        tuple(templates),
        lambda prompts: clip.encode_text(prompts).numpy(),
        fingerprint(key),
        cache_folder(),
    )
    return torch.stack([query_feature(torch.from_numpy(embeddings[text])) for text in texts])
