"""The tokenizer of a TIPSv2, from its file and without PyTorch. Prompts are in lower case, as in its training."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ovseg_batch.errors import OvsegError

Encode = Callable[[str], list[int]]


def token_ids(text: str, file: str) -> list[int]:
    """Return the ids of a text, without padding.

    Args:
        file: the SentencePiece model of the published repository, or the `tokenizer.json` that transformers writes.

    Raises:
        OvsegError: the file cannot be read.
    """
    return _encoder(file)(text.lower())


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
