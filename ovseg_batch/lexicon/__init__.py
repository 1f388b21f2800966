"""Common things, materials and regions that compete with the few words of a user's labels.

Open-vocabulary segmentation assigns every pixel to one of its words. With few labels, pixels that show none of them are
assigned to a wrong label. With the lexicon's words, such pixels are assigned to "sky" or "wall". A competing word is
excluded if it would take pixels from a label: if it equals one of the label's words, is a broader or narrower term, or
is a part or the whole of it.

The relations come from WordNet 3.0 (LICENSE.wordnet); scripts/docs/build_lexicon.py writes them to words.txt and
describes them. Sections of words.txt begin with `= title`. They are the competing words, the irregular plurals, and
groups of nouns, whose titles are the relations of the competing words to the nouns.

For a phrase that is not in WordNet, the head noun is used: "man" for "man in a red hat".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from ovseg_batch.errors import UsageError, nearest

# Words that follow a head noun. Participles are included because captions use them so: "man wearing a hat".
_AFTER_HEAD = frozenset(
    "of in on with without at for from by to under over above below behind near beside inside outside between "
    "wearing holding carrying riding that which who".split()
)
# Words that are not the head noun before "of": a piece of cake is cake.
_MEASURES = frozenset(
    "piece slice bunch group pair set pile stack heap row line kind type herd flock pack swarm crowd lot "
    "picture photo image view".split()
)
# Suffixes of names in COCO-Stuff: "building-other", "door-stuff".
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
    """A label, with the user's decisions on competing words.

    Attributes:
        name: name of the label, which is not a prompt unless it is in `words`.
        words: prompts for CLIP.
        allow: words that do not compete with the label.
        compete: words that compete with the label in any case. They need not be in the lexicon.
    """

    name: str
    words: tuple[str, ...]
    allow: tuple[str, ...] = ()
    compete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Competition:
    """The words that compete with the labels, and the excluded words.

    Attributes:
        words: competing words in the order of the lexicon, followed by additional words of `compete`, sorted.
        left_out: label → words that it excludes. Labels without such words are missing.
    """

    words: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]


def words() -> tuple[str, ...]:
    """Return all words of the lexicon, in its order."""
    return _data().words


def compete(labels: Sequence[LabelWords]) -> Competition:
    """Return the words that compete with all labels together.

    Args:
        labels: all labels of a run, in any order. A word in `compete` of one label competes even if another label
            excludes it, unless it is a word of a label.

    Raises:
        UsageError: a word in `allow` is not a competing word, or is in `compete` of the same label.
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
    removed = set().union(*left_out.values())
    return Competition(
        words=tuple(word for word in competing if word not in removed),
        left_out={name: tuple(word for word in competing if word in here) for name, here in left_out.items()},
    )


def relations(phrase: str) -> dict[str, str]:
    """Return the relations of the lexicon's words to a phrase.

    Case, hyphens, underscores and plural do not matter. A phrase that is not in WordNet has the relations of its head
    noun. Words before the head noun are modifiers: "brick" does not compete with "old brick wall".

    Args:
        phrase: a noun or noun phrase in English.

    Returns:
        Word → "same", "broader", "narrower", "part" (the word is a part of the phrase's object), "whole" or "modifier",
        in the order of the lexicon. Empty for unknown phrases.
    """
    tokens = _tokens(phrase)
    found = _noun(tokens)
    if found is None:
        found = _head(_before_preposition(tokens))
    return {word: found[word] for word in words() if word in found}


def _tokens(phrase: str) -> list[str]:
    return [token for token in _BETWEEN_WORDS.split(phrase.lower()) if token]


def _forms(token: str) -> list[str]:
    """Return a word and its possible singular forms."""
    if token in _data().plurals:
        return [token, _data().plurals[token]]
    if len(token) < 4 or token.endswith("ss"):  # "gas" and "glass" are not plurals
        return [token]
    return [token, *(token.removesuffix(end) + new for end, new in _ENDINGS if token.endswith(end))]


@functools.lru_cache(maxsize=4096)
def _keys(phrase: str) -> frozenset[str]:
    """Return the keys of a phrase. Case, spacing and plural do not matter: "hot-dogs", "hotdog"."""
    *first, last = _tokens(phrase) or [""]
    return frozenset("".join(first) + form for form in _forms(last)) if last else frozenset()


def _noun(tokens: list[str]) -> dict[str, str] | None:
    """Return the relations of a noun of WordNet and of its possible singular forms, or None if it is unknown."""
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
    """Return the form of a word in the lexicon, or the word itself if it is not listed."""
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
    """The content of words.txt. `nouns` maps nouns without spaces to an index of `relations`."""

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
    """Parse a title such as `broader animal, same dog`."""
    return {word: kind for kind, _, word in (one.partition(" ") for one in title.split(", ")) if word}
