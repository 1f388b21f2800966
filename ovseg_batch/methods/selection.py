"""Proposals first: from each mask's likeness to each word to the masks that are kept, and why.

Source: thesis 3.2 and 4.3.6 (weights, suppression, eq. 3.6-3.8 and 4.9-4.11, top-K), METHODS 4. M masks, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

PENALTY_FROM, PENALTY_SPAN, PENALTY = 0.15, 0.35, 0.85  # eq. 4.11
INSIDE = 0.9  # share of a mask in a larger one from which it is a part of it
GAP = 0.25  # of the best score: a fall from one mask to the next by more separates groups

IRREGULAR_PLURALS = frozenset("people men women children feet teeth geese mice cattle police leaves knives".split())
SINGULAR_IN_S = frozenset(
    "grass glass bus gas lens cactus canvas atlas iris virus octopus walrus tennis chess dress compass mattress "
    "campus asparagus hibiscus news".split()
)
PARTS = frozenset(
    "tire wheel window door headlight mirror bumper hood leg arm hand foot head face eye ear nose mouth finger tail "
    "wing fin petal leaf branch root handle button key drawer shelf pane sail mast chimney roof paw hoof horn "
    "beak".split()
)


def suppressed(
    likeness: Array, background: Array, confusers: Array, background_weight: float, confuser_weight: float
) -> Array:
    """Likeness less what a mask has in common with nothing in particular, and with what its class is mistaken for.

    Args:
        likeness: (M, C) cosine similarities.
        background: (M,) the best of the background words.
        confusers: (M, C) the best of each class's confusers, 0 where it has none.

    Returns:
        (M, C). Source: eq. 3.8.
    """
    out: Array = likeness - background_weight * background[:, None] - confuser_weight * confusers
    return out


def adaptive_floor(scores: Array, least: float) -> float:
    """The score that a class's best mask must reach: the median over classes of the best, or `least` (eq. 4.9).

    Args:
        scores: (M, C).
    """
    return float(max(np.median(scores.max(axis=0)), least)) if scores.size else least


def size_penalty(share: Array) -> Array:
    """1 for masks up to 15 % of the image, falling to 0.15 at half of it (eq. 4.11); same shape as `share`."""
    over = np.clip((share - PENALTY_FROM) / PENALTY_SPAN, 0.0, 1.0)
    factor: Array = 1.0 - PENALTY * over
    return factor


def probabilities(scores: Array, kept: Array, scale: float) -> Array:
    """Softmax over the kept classes of scale · score: (M, C), 0 for the others (eq. 4.10 as METHODS reads it).

    Args:
        scores: (M, C).
        kept: (C,) bool, at least one.
    """
    logits = np.where(kept[None], scores * scale, -np.inf)
    logits = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    out: Array = weights / weights.sum(axis=1, keepdims=True)
    return out


def distinct(rated: Array, overlap: Array, limit: float) -> list[int]:
    """Indices of the masks that no better rated kept one overlaps by more than `limit` (IoU), best first.

    Args:
        rated: (M,).
        overlap: (M, M) IoU.
    """
    kept: list[int] = []
    for index in np.argsort(-rated, kind="stable").tolist():
        if not kept or overlap[index, kept].max() <= limit:
            kept.append(index)
    return kept


@dataclass(frozen=True, slots=True)
class Choice:
    """How many of a class's candidates are kept, and why."""

    indices: list[int]
    reason: str


def choose_top(candidates: Sequence[int], count: int) -> Choice:
    """The best `count` candidates, best first."""
    kept = list(candidates[:count])
    return Choice(kept, f"best {len(kept)} of {len(candidates)}: K is {count}")


def choose_adaptively(words: Sequence[str], candidates: Sequence[int], rated: Array, inside: Array) -> Choice:
    """As many masks as the query seems to want: the noun's number, the masks' hierarchy and the gaps in score vote.

    Args:
        words: prompts of the class; the grammar of the first one counts.
        candidates: indices of its masks, best first.
        rated: (M,) scores.
        inside: (M, M) share of mask i that lies in mask j.

    Returns:
        The median of the three numbers of masks, the best ones first; a part of a kept whole is passed over unless the
        word names a part.
    """
    count = len(candidates)
    if count == 0:
        return Choice([], "no candidates")
    number, grammar = _grammar(words[0] if words else "", count)
    part = grammar.endswith("a part")
    nested = [any(inside[i, j] >= INSIDE and inside[j, i] < INSIDE for j in candidates if j != i) for i in candidates]
    standing = sum(nested) or count if part else count - sum(nested)
    before_gap = _before_gap(rated[list(candidates)])
    wanted = int(np.median([number, standing, before_gap]))
    kept: list[int] = []
    for index in candidates:
        swallowed = any(inside[index, k] >= INSIDE or inside[k, index] >= INSIDE for k in kept)
        if len(kept) < wanted and (part or not swallowed):
            kept.append(index)
    reasons = (
        f"{grammar} ({number}), {standing} {'are parts' if part else 'stand alone'}, scores fall after {before_gap}"
    )
    return Choice(kept, f"{len(kept)} of {count}: {reasons}")


def _grammar(word: str, count: int) -> tuple[int, str]:
    """How many the noun asks for, and what it is."""
    noun = word.lower().split()[-1] if word.split() else ""
    if noun in IRREGULAR_PLURALS or (noun.endswith("s") and noun not in SINGULAR_IN_S and not noun.endswith("ss")):
        single = noun.removesuffix("s")
        return count, f"'{word}' is {'a part' if single in PARTS else 'plural'}"
    if noun in PARTS:
        return count, f"'{word}' is a part"
    return 1, f"'{word}' is singular"


def _before_gap(rated: Array) -> int:
    """How many lie before the widest gap; all of them where no gap is wider than a quarter of the best score."""
    falls = rated[:-1] - rated[1:]
    if not len(falls) or falls.max() <= GAP * rated[0]:
        return len(rated)
    return int(falls.argmax()) + 1
