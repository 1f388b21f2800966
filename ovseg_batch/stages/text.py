"""What the words of a vocabulary are to CLIP: one feature a query, from the cache where it has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ovseg_batch.io.text_cache import cache_folder, text_embeddings
from ovseg_batch.methods.vocabulary import Vocabulary, query_feature
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.zoo import ModelSpec
from ovseg_batch.store import fingerprint

TEXT_VERSION = 2  # of the embeddings' last bits: prompts are encoded without their padding


@dataclass(frozen=True, slots=True)
class Words:
    """What CLIP is asked for: a vocabulary's queries, the templates around them, what labels are in a sentence.

    `definitions` are by name of the class; `weight` is theirs against the words', where there are any.
    """

    vocabulary: Vocabulary
    templates: tuple[str, ...]
    definitions: Mapping[str, str]
    weight: float

    @property
    def _defined(self) -> list[str]:
        """The definition of each query's class, or nothing."""
        return [self.definitions.get(self.vocabulary.names[k], "") for k in self.vocabulary.query_class]

    def inputs(self) -> dict[str, Any]:
        """What decides the features, for fingerprints."""
        return {
            "templates": list(self.templates),
            "queries": list(self.vocabulary.queries),
            "definitions": self._defined,
            "definition_weight": self.weight if any(self._defined) else None,
        }

    def features(self, clip: DenseClip, spec: ModelSpec) -> Tensor:
        """(Q, D) float32 on the CPU: one a query, with its class's definition mixed in where there is one."""
        words = text_features(clip, spec, self.vocabulary.queries, self.templates)
        told = [k for k, definition in enumerate(self._defined) if definition]
        if told:
            definitions = text_features(clip, spec, [self._defined[k] for k in told], self.templates)
            words[told] = torch.lerp(words[told], definitions, self.weight)
        return words


def text_features(clip: DenseClip, spec: ModelSpec, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
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
