"""CLIP's tokenizer without PyTorch, from the table of byte pairs that comes with open_clip.

A plan counts tokens with it, and importing PyTorch takes seconds. The ids are those of the tokenizer of transformers.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ovseg_batch.errors import UsageError

TABLE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 48894  # lines of the table that CLIP uses
START, END = 49406, 49407
MARKS = 2  # tokens before and after a text
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # parts of a text that are never merged
BYTES = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that the table writes as characters of their own


def token_ids(text: str) -> list[int]:
    """Return the ids of a text between the start and the end token."""
    return [START, *_tokenizer().encode(text).ids, END]


def require_short(
    prompts: Iterable[str],
    most: int,
    model: str,
    advice: str = "",
    ids: Callable[[str], Sequence[int]] = token_ids,
) -> None:
    """Require that every prompt has at most so many tokens.

    Args:
        most: tokens that a model takes, with the marks of start and end.
        model, advice: name of the model, and what else helps, for the message.
        ids: tokenizer of the model, whose tokens have a byte each at least.

    Raises:
        UsageError: a prompt is longer.
    """
    for prompt in prompts:
        if len(prompt.encode()) + MARKS > most and (count := len(ids(prompt))) > most:
            raise UsageError(
                f"labels: the prompt {prompt!r} has {count} tokens, and {model} takes {most}. Name the label in fewer "
                f"words{advice}."
            )


@functools.cache
def _tokenizer() -> Tokenizer:
    package = importlib.util.find_spec("open_clip")
    [folder] = (package.submodule_search_locations if package else None) or [""]
    lines = gzip.decompress(Path(folder, TABLE).read_bytes()).decode().split("\n")
    merges = [(one, other) for one, other in map(str.split, lines[1 : MERGES + 1])]
    characters = [*map(chr, BYTES), *(chr(256 + k) for k in range(256 - len(BYTES)))]
    words = [*characters, *(f"{one}</w>" for one in characters), *map("".join, merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
