"""What SAM 3 has found of a word in an image, and how a row of the stage stores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ovseg_batch.types import WordMask
from ovseg_batch.types.arrays import AnyArray, Pixels


@dataclass(frozen=True, slots=True)
class FoundWord:
    """What is kept of one word in an image, or in a view of it.

    Attributes:
        query: index of the word in the vocabulary.
        presence: probability that the word is in the image.
        best: the best score of its queries.
        masks: the masks whose score reaches the floor.
        fused: map (h, w) of the word. None where no mask reaches the floor.
    """

    query: int
    presence: float
    best: float
    masks: Sequence[WordMask]
    fused: Pixels | None


def packed(words: Sequence[FoundWord], size: tuple[int, int]) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Return the columns and the arrays of the row of an image (H, W), as `Sam3Plan` describes them."""
    columns = [
        {"query": one.query, "presence": one.presence, "best": one.best, "found": one.fused is not None}
        for one in words
    ]
    masks = [mask for one in words for mask in one.masks]
    maps = [one.fused for one in words if one.fused is not None]
    values = {"height": size[0], "width": size[1], "words": columns, "word_masks": masks}
    return values, {"maps": np.stack(maps)} if maps else {}


@dataclass(frozen=True, slots=True)
class StoredWord:
    """A word in the columns of a row.

    Attributes:
        word: without its map.
        place: index of its map in the row's array `maps`. None: it has none.
    """

    word: FoundWord
    place: int | None


def unpacked(values: Mapping[str, Any]) -> tuple[dict[int, StoredWord], int]:
    """Return the words in the columns of a row by query, and the number of its maps."""
    masks: dict[int, list[WordMask]] = {}
    for mask in values["word_masks"]:
        masks.setdefault(mask.query, []).append(mask)
    words, maps = {}, 0
    for one in values["words"]:
        word = FoundWord(one["query"], one["presence"], one["best"], masks.get(one["query"], []), None)
        words[word.query] = StoredWord(word, maps if one["found"] else None)
        maps += one["found"]
    return words, maps
