"""Token ids of prompts for SAM 3: CLIP's byte pair encoding, which open_clip ships.

Importing this module imports no model library, because a plan must only know whether prompts are too long.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from ovseg_batch.errors import UsageError

MARKS = 2  # tokens before and after a prompt


@functools.cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def token_ids(prompt: str) -> list[int]:
    """Return the ids of a prompt, with the marks of its start and end."""
    tokenizer = _tokenizer()
    return [tokenizer.sot_token_id, *tokenizer.encode(prompt), tokenizer.eot_token_id]


def require_short(prompts: Iterable[str], context: int) -> None:
    """Require that every prompt has at most `context` tokens.

    Raises:
        UsageError: a prompt is longer.
    """
    for prompt in prompts:
        if len(prompt.encode()) + MARKS <= context:  # a token has at least one byte
            continue
        count = len(token_ids(prompt))
        if count > context:
            raise UsageError(
                f"labels: {prompt!r} has {count} tokens, and this SAM 3 reads at most {context}, of which {MARKS} mark "
                "the start and the end. Name it in fewer words; SAM 3 expects a short noun phrase."
            )
