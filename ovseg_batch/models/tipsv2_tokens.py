"""The tokenizer of a TIPSv2, from its file and without PyTorch. Prompts are in lower case, as in its training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from ovseg_batch.errors import OvsegError, UsageError

Encode = Callable[[str], list[int]]


def token_ids(text: str, file: str) -> list[int]:
    """Return the ids of a text, without padding.

    Args:
        file: the SentencePiece model of the published repository, or the `tokenizer.json` that transformers writes.

    Raises:
        OvsegError: the file cannot be read.
    """
    return _encoder(file)(text.lower())


def require_short(prompts: Iterable[str], file: str, most: int, model: str) -> None:
    """Require that every prompt has at most so many tokens.

    Args:
        file: as in `token_ids`.
        most: tokens that the model takes.
        model: name of the model, for the message.

    Raises:
        UsageError: a prompt is longer.
        OvsegError: the file cannot be read.
    """
    for prompt in prompts:
        # a token has at least one byte, besides the mark before the first word
        if len(prompt.encode()) + 1 > most and (count := len(token_ids(prompt, file))) > most:
            raise UsageError(
                f"labels: the prompt {prompt!r} has {count} tokens, and {model} takes {most}. Name the label in fewer "
                "words."
            )


@functools.cache
def _encoder(file: str) -> Encode:
    try:
        if file.endswith(".json"):
            return _of_transformers(file)
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=file)
    except Exception as error:  # the libraries raise many classes
        first = str(error).strip().partition("\n")[0]
        raise OvsegError(
            f"{file} cannot be read as a tokenizer: {first}. If it is a download, fetch it again."
        ) from None
    return lambda text: [int(one) for one in processor.encode(text)]


def _of_transformers(file: str) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
