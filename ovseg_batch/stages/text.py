"""CLIP's features of the words of a run, one per query, with a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovseg_batch.io.text_cache import text_embeddings
from ovseg_batch.io.user_cache import cache_folder
from ovseg_batch.methods.class_scores import query_feature
from ovseg_batch.models.encoders import Encoder
from ovseg_batch.models.zoo import ModelSpec
from ovseg_batch.stages.words import Words
from ovseg_batch.workdir.store import fingerprint

TEXT_VERSION = 4  # of the embeddings' last bits: every distinct prefix of a word's prompts is computed once


def word_features(words: Words, clip: Encoder, spec: ModelSpec) -> Tensor:
    """Return (Q, D) float32 on the CPU: one feature per query, mixed with its class's definition where there is one."""
    features = text_features(clip, spec, words.vocabulary.queries, words.templates)
    definitions = words.query_definitions
    defined = [k for k, definition in enumerate(definitions) if definition]
    if defined:
        others = text_features(clip, spec, [definitions[k] for k in defined], words.templates)
        features[defined] = torch.lerp(features[defined], others, words.weight)
    return features


def text_features(clip: Encoder, spec: ModelSpec, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(T, D) float32 on the CPU, L2-normalised: one for each text, over all templates."""
    key = {
        "version": TEXT_VERSION,
        "clip": spec.identity(),
        "tokenizer": clip.tokenizer_id,
        "templates": list(templates),
    }
    embeddings = text_embeddings(
        list(dict.fromkeys(texts)),
        tuple(templates),
        lambda prompts: clip.encode_text(prompts).numpy(),
        fingerprint(key),
        cache_folder(),
    )
    return torch.stack([query_feature(torch.from_numpy(embeddings[text])) for text in texts])
