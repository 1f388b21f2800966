"""Tokens are those of open_clip and of transformers, and counting them imports no PyTorch."""

from __future__ import annotations

import subprocess
import sys

from open_clip.tokenizer import SimpleTokenizer

from ovseg_batch.lexicon import compete
from ovseg_batch.methods.vocabulary import TEMPLATES
from ovseg_batch.models.clip_tokens import END, START, token_ids

UNUSUAL = (
    "",
    "  two   spaces\n",
    "Don't stop: 12 3a!",
    "traffic-light (red)",
    "café naïve",
    "日本 語",
    "😀 x",
    "'s 'a'",
)


def test_ids_are_those_of_open_clip() -> None:
    tokenizer = SimpleTokenizer()
    for text in (*compete([]).words, *TEMPLATES["openai80"], *UNUSUAL):
        assert token_ids(text) == [START, *tokenizer.encode(text), END], text


def test_counting_needs_no_pytorch() -> None:
    code = (
        "import sys; from ovseg_batch.models.clip_tokens import token_ids; print(len(token_ids('a cat')), *sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found[0] == "4" and not {"torch", "open_clip", "transformers"} & {*found}
