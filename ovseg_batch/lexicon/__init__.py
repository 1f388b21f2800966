"""Common things, materials and regions that compete with the few words of a user's labels.

Open-vocabulary segmentation gives every pixel to one of its words. With few labels, pixels that show none of them go to
the wrong one; with the lexicon's words beside them, those pixels go to "sky" or "wall". A competing word is left out
where it would take pixels from a label itself: if it is the same as one of the label's words, a broader or narrower
term, or a part or the whole of it.

The relations come from WordNet 3.0 (LICENSE.wordnet); scripts/docs/build_lexicon.py writes them to words.txt and
describes them. Sections of words.txt begin with `= title`: the competing words, the irregular plurals, and then, under
what every competing word is to them, the nouns.

A phrase that WordNet does not have stands for its head noun: "man in a red hat" for "man".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from ovseg_batch.errors import UsageError, nearest

# The head noun comes before these. Participles are among them because captions use them so: "man wearing a hat".
_AFTER_HEAD = frozenset(
    "of in on with without at for from by to under over above below behind near beside inside outside between "
    "wearing holding carrying riding that which who".split()
)
# Before "of", these are not the head noun: a piece of cake is cake.
_MEASURES = frozenset(
    "piece slice bunch group pair set pile stack heap row line kind type herd flock pack swarm crowd lot "
    "picture photo image view".split()
)
# COCO-Stuff ends names in these: "building-other", "door-stuff".
_NO_NOUNS = frozenset(("other", "stuff"))
# WordNet's rules of detachment for nouns (morphy(7WN)).
_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
_BETWEEN_WORDS = re.compile(r"[\s_\-./,;:!?()\"]+")


@dataclass(frozen=True, slots=True)
class LabelWords:
    """A label and what the user decided on the words that compete with it.

    `words` are the phrases that CLIP is given; the name itself has no meaning here unless it is one of them. Words in
    `allow` do not compete with the label, words in `compete` do, whatever the lexicon holds. `compete` may name words
    that the lexicon does not list.
    """

    name: str
    words: tuple[str, ...]
    allow: tuple[str, ...] = ()
    compete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Competition:
    """The words that compete with the labels, and those left out, by label.

    `words` are in the order of the lexicon, then those that only `compete` names, sorted. `left_out` maps the names of
    labels that leave out at least one word to these words.
    """

    words: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]


def words() -> tuple[str, ...]:
    """Return all words of the lexicon, in its order."""
    return _data().words


def compete(labels: Sequence[LabelWords]) -> Competition:
    """Return the words that compete with all labels together.

    Args:
        labels: all labels of a run. Their order does not matter. A word in `compete` of one label competes even if
            another label leaves it out, unless it is one of the labels' own words.

    Raises:
        UsageError: a word in `allow` does not compete in the first place, or is in `compete` of the same label.
    """
    required = {_listed(word) for label in labels for word in label.compete}
    competing = (*words(), *sorted(required - set(words())))
    own = {key for label in labels for word in label.words for key in _keys(word)}
    required -= {word for word in required if own & _keys(word)}
    left_out: dict[str, set[str]] = {}
    for label in labels:
        keys = {key for word in label.words for key in _keys(word)}
        related = {word for phrase in label.words for word in relations(phrase)} | _checked_allow(label, competing)
        if here := {word for word in competing if word in related or keys & _keys(word)} - required:
            left_out.setdefault(label.name, set()).update(here)
    gone = set().union(*left_out.values())
    return Competition(
        words=tuple(word for word in competing if word not in gone),
        left_out={name: tuple(word for word in competing if word in here) for name, here in left_out.items()},
    )


def relations(phrase: str) -> dict[str, str]:
    """Return what the words of the lexicon are to a phrase.

    Case, hyphens, underscores and plural do not matter. A phrase that WordNet does not have has the relations of its
    head noun. The words before the head noun are its modifiers: no "brick" competes with an "old brick wall".

    Args:
        phrase: a noun or noun phrase in English.

    Returns:
        Word to "same", "broader", "narrower", "part" (the word is a part of what the phrase means), "whole" or
        "modifier", in the order of the lexicon. Empty if the lexicon does not know the phrase.
    """
    tokens = _tokens(phrase)
    found = _noun(tokens)
    if found is None:
        found = _head(_before_preposition(tokens))
    return {word: found[word] for word in words() if word in found}


def _tokens(phrase: str) -> list[str]:
    return [token for token in _BETWEEN_WORDS.split(phrase.lower()) if token]


def _forms(token: str) -> list[str]:
    """Return a word and what it can be the plural of."""
    if token in _data().plurals:
        return [token, _data().plurals[token]]
    if len(token) < 4 or token.endswith("ss"):  # "gas" and "glass" are no plurals
        return [token]
    return [token, *(token.removesuffix(end) + new for end, new in _ENDINGS if token.endswith(end))]


@functools.lru_cache(maxsize=4096)
def _keys(phrase: str) -> frozenset[str]:
    """Return keys of a phrase. Phrases that differ in case, spacing or plural alone share one: "hot-dogs", "hotdog"."""
    *first, last = _tokens(phrase) or [""]
    return frozenset("".join(first) + form for form in _forms(last)) if last else frozenset()


def _noun(tokens: list[str]) -> dict[str, str] | None:
    """Return the relations of a noun of WordNet and of what it can be the plural of; None if there is none."""
    data = _data()
    found = [data.relations[data.nouns[key]] for key in sorted(_keys(" ".join(tokens))) if key in data.nouns]
    return {word: kind for one in found for word, kind in one.items()} if found else None


def _before_preposition(tokens: list[str]) -> list[str]:
    """Return the part of a phrase that ends in its head noun."""
    for at, token in enumerate(tokens):
        if at and token in _AFTER_HEAD:
            if token == "of" and _MEASURES.intersection(_forms(tokens[at - 1])):
                return _before_preposition(tokens[at + 1 :])
            return tokens[:at]
    return tokens


def _head(tokens: list[str]) -> dict[str, str]:
    """Return the relations of the longest noun that ends a phrase, and the words of the lexicon that come before it."""
    while tokens and tokens[-1] in _NO_NOUNS:
        tokens = tokens[:-1]
    for at in range(len(tokens)):
        found = _noun(tokens[at:])
        if found is not None:
            before = {key for token in tokens[:at] for key in _keys(token)}
            return {word: "modifier" for word in words() if before & _keys(word)} | found
    return {}


def _listed(word: str) -> str:
    """Return the word of the lexicon that a user's word is, otherwise the user's."""
    return next((one for one in words() if _keys(one) & _keys(word)), " ".join(word.split()))


def _checked_allow(label: LabelWords, competing: Sequence[str]) -> set[str]:
    """Return the words of the lexicon in `allow` of a label. Raises UsageError as `compete` does."""
    allowed, required = {_listed(word) for word in label.allow}, {_listed(word) for word in label.compete}
    for word in sorted(allowed):
        if word in required:
            raise UsageError(f"Label {label.name!r} has {word!r} both in allow and in compete. Remove one of them.")
        if word not in competing:
            known = nearest(word, competing)
            raise UsageError(f"Label {label.name!r}: {word!r} in allow is not a competing word.{known} Remove it.")
    return allowed


@dataclass(frozen=True, slots=True)
class _Data:
    """words.txt. `nouns` maps nouns, without the spaces between their words, to an index of `relations`."""

    words: tuple[str, ...]
    plurals: Mapping[str, str]
    relations: tuple[Mapping[str, str], ...]
    nouns: Mapping[str, int]


@functools.cache
def _data() -> _Data:
    text = resources.files(__name__).joinpath("words.txt").read_text(encoding="utf-8")
    listed, plurals, *groups = (section.partition("\n")[::2] for section in text.removeprefix("= ").split("\n= "))
    nouns: dict[str, int] = {}
    for index, (_, lines) in enumerate(groups):
        joined = lines.replace(" ", "").replace("-", "").replace(".", "")
        nouns.update(dict.fromkeys(joined.split(), index))
    return _Data(
        words=tuple(listed[1].splitlines()),
        plurals=dict(line.split(" ", 1) for line in plurals[1].splitlines()),
        relations=tuple(_relation(title) for title, _ in groups),
        nouns=nouns,
    )


def _relation(title: str) -> dict[str, str]:
    """Read `broader animal, same dog`."""
    return {word: kind for kind, _, word in (one.partition(" ") for one in title.split(", ")) if word}
