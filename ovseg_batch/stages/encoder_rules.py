"""Which settings go with a TIPSv2, whose patches are used as trained. It has none of CLIP's blocks."""

from __future__ import annotations

import functools

from ovseg_batch.errors import UsageError
from ovseg_batch.models.clip_tokens import require_short
from ovseg_batch.models.tipsv2_tokens import token_ids
from ovseg_batch.models.zoo import ModelSpec
from ovseg_batch.settings import DenseConfig
from ovseg_batch.stages.words import Words

TRAINED = "vanilla"  # dense.attention that changes no block


def require_trained(spec: ModelSpec, dense: DenseConfig) -> None:
    """Require settings that change no block where the model is a TIPSv2. Raises UsageError."""
    if not spec.is_tipsv2:
        return
    if dense.attention != TRAINED:
        raise UsageError(
            f"dense.attention: {dense.attention} computes with the blocks of a CLIP, and clip.model {spec.name!r} is a "
            f"TIPSv2, whose patches are used as trained. Set dense.attention: {TRAINED}, or use the preset tipsv2."
        )
    if dense.layers != (1.0,):
        raise UsageError(f"dense.layers: clip.model {spec.name!r} is a TIPSv2. Only its last block goes: [1.0].")
    if dense.key_smoothing:
        raise UsageError(
            f"dense.key_smoothing compares the keys of a CLIP, and clip.model {spec.name!r} is a TIPSv2. Set it to 0."
        )


def require_clip(spec: ModelSpec) -> None:
    """Require a CLIP for the features of masks. Raises UsageError."""
    if spec.is_tipsv2:
        raise UsageError(
            f"method: proposals computes features of masks with a CLIP, and clip.model {spec.name!r} is a TIPSv2. "
            "Name a CLIP, such as openai-b16, or set method: dense."
        )


def require_short_words(spec: ModelSpec, words: Words) -> None:
    """Require that every prompt of the run has at most as many tokens as a TIPSv2 takes. Raises UsageError."""
    if not spec.is_tipsv2:
        return
    texts = (*words.vocabulary.queries, *filter(None, words.query_definitions))
    prompts = (template.format(text) for text in texts for template in words.templates)
    require_short(prompts, spec.context, spec.name, ids=functools.partial(token_ids, file=spec.tokenizer))
