"""The tokenizer: real byte-pair merges learnt from every sentence of the trainings."""

from __future__ import annotations

import gzip
import itertools
from collections import Counter
from pathlib import Path

import numpy as np

from ovseg_batch import scenes
from ovseg_batch.methods.vocabulary import TEMPLATES

HEADER = '"bpe merges of the scenes vocabulary'
COLOURS = "red blue green yellow orange white grey black brown pink purple".split()
CONTEXT = 32


def corpus() -> list[str]:
    templates = [t for name in TEMPLATES.values() for t in name]
    text = [t.format(name) for t in templates for name in scenes.CLASSES]
    rng = np.random.default_rng(0)
    text += [scenes.caption(scenes.render(scenes.TRAIN_SEEDS[k]), rng) for k in range(200)]
    return text + COLOURS * 50


def write_tokenizer(path: Path, merges: int = 300) -> int:
    """Learn merges until every word is one token (or `merges` are made), write open_clip's format; how many."""
    words = Counter(w.strip(".,").lower() for line in corpus() for w in line.split())
    words.pop("", None)
    spelled = {word: (*word[:-1], f"{word[-1]}</w>") for word in words}
    learnt: list[tuple[str, str]] = []
    while len(learnt) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelled.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        learnt.append(best)
        spelled = {word: _merge(parts, best) for word, parts in spelled.items()}
    text = "\n".join([HEADER, *(" ".join(pair) for pair in learnt)])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return len(learnt)


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return tuple(merged)
