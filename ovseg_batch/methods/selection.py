"""Select proposals by their similarity to the words of each class, with a reason for each kept mask.

Source: García García 2025, sections 3.2 and 4.3.6: weights, suppression (eq. 3.6-3.8 and 4.9-4.11) and top-K. Shapes: M
masks, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovseg_batch.types.arrays import Mask, Numbers

PENALTY_FROM, PENALTY_SPAN, PENALTY = 0.15, 0.35, 0.85  # eq. 4.11
INSIDE = 0.9  # least share of a mask within a larger one for it to count as its part
GAP = 0.25  # a larger drop between consecutive scores, relative to the best, separates groups

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
    likeness: Numbers, background: Numbers, confusers: Numbers, background_weight: float, confuser_weight: float
) -> Numbers:
    """Return similarities minus weighted similarities to background words and to the confusers of the class (eq. 3.8).

    Args:
        likeness: (M, C) cosine similarities of masks and classes.
        background: (M,) highest similarity to a background word.
        confusers: (M, C) highest similarity to a confuser of the class; 0 without confusers.
        background_weight, confuser_weight: factors of the two terms that are subtracted.

    Returns:
        (M, C).
    """
    out: Numbers = likeness - background_weight * background[:, None] - confuser_weight * confusers
    return out


def adaptive_floor(scores: Numbers, least: float) -> float:
    """Return the score that a class's best mask must reach: the median of the best scores (eq. 4.9), at least `least`.

    Args:
        scores: (M, C).
        least: lower bound of the result.
    """
    return float(max(np.median(scores.max(axis=0)), least)) if scores.size else least


def size_penalty(share: Numbers) -> Numbers:
    """Return the size penalty (eq. 4.11) of each share of the image: 1 up to 15 %, falling to 0.15 at 50 %."""
    over = np.clip((share - PENALTY_FROM) / PENALTY_SPAN, 0.0, 1.0)
    factor: Numbers = 1.0 - PENALTY * over
    return factor


def probabilities(scores: Numbers, kept: Mask, scale: float) -> Numbers:
    """Return the softmax of scale · score over the kept classes: (M, C), 0 for the others.

    Eq. 4.10 divides by a temperature of 100, but its published values follow from a factor of 100.

    Args:
        scores: (M, C).
        kept: (C,) bool, at least one True.
        scale: factor of the scores.
    """
    logits = np.where(kept[None], scores * scale, -np.inf)
    logits = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    out: Numbers = weights / weights.sum(axis=1, keepdims=True)
    return out


def distinct(rated: Numbers, overlap: Numbers, limit: float) -> list[int]:
    """Return the indices of masks after non-maximum suppression: best first, no IoU with a better one above `limit`.

    Args:
        rated: (M,) scores.
        overlap: (M, M) IoU.
    """
    kept: list[int] = []
    for index in np.argsort(-rated, kind="stable").tolist():
        if not kept or overlap[index, kept].max() <= limit:
            kept.append(index)
    return kept


@dataclass(frozen=True, slots=True)
class Choice:
    """The kept candidates of a class, and the reason of their number."""

    indices: list[int]
    reason: str


def choose_top(candidates: Sequence[int], count: int) -> Choice:
    """Return the first `count` candidates. Candidates are sorted, best first."""
    kept = list(candidates[:count])
    return Choice(kept, f"best {len(kept)} of {len(candidates)}: K is {count}")


def choose_adaptively(words: Sequence[str], candidates: Sequence[int], rated: Numbers, inside: Numbers) -> Choice:
    """Return as many masks as the query suggests: the median of votes by noun, hierarchy and score gap.

    Args:
        words: prompts of the class. The first one decides the number of the noun.
        candidates: indices of its masks, best first.
        rated: (M,) scores.
        inside: (M, M) share of mask i that lies in mask j.

    Returns:
        The best masks, best first. A part of a kept mask is skipped unless the word names a part.
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
    """Return the number of masks that the noun suggests, and a description of the noun."""
    noun = word.lower().split()[-1] if word.split() else ""
    if noun in IRREGULAR_PLURALS or (noun.endswith("s") and noun not in SINGULAR_IN_S and not noun.endswith("ss")):
        single = noun.removesuffix("s")
        return count, f"'{word}' is {'a part' if single in PARTS else 'plural'}"
    if noun in PARTS:
        return count, f"'{word}' is a part"
    return 1, f"'{word}' is singular"


def _before_gap(rated: Numbers) -> int:
    """Return the number of scores before the widest gap. Without a gap above `GAP` times the best score, return all."""
    falls = rated[:-1] - rated[1:]
    if not len(falls) or falls.max() <= GAP * rated[0]:
        return len(rated)
    return int(falls.argmax()) + 1
