"""Match the images and labels of a run with those of a ground truth, by their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.units import counted

SHOWN = 3  # names in a message
BLANKS = re.compile(r"[\s_-]+")


@dataclass(frozen=True, slots=True)
class MatchedImages:
    """The images of a run that a ground truth has.

    Attributes:
        places: file name in the run → index in the truth.
        images: images of the run.
        truth: images of the truth.
        ambiguous: images of the run that were not matched because several have the same name.
    """

    places: dict[str, int]
    images: int
    truth: int
    ambiguous: int


def match_images(images: Iterable[str], truth: Sequence[str], suffixes: bool, where: Path) -> MatchedImages:
    """Match images by their whole file names, and then by the last part of them where it is unique.

    Args:
        images: file names of the run.
        truth: names of the images of the truth.
        suffixes: whether names of the truth have the suffixes of the image files. Otherwise either form matches.
        where: file or folder of the truth, for messages.

    Raises:
        UsageError: the truth has a name twice, or no image matches.
    """
    whole = {_plain(name): place for place, name in enumerate(truth)}
    if len(whole) < len(truth):
        name, count = Counter(map(_plain, truth)).most_common(1)[0]
        raise UsageError(f"{where} has {count} images of the name {name!r}. Keep one of them.")
    last = _unique((Path(name).name, place) for name, place in whole.items())
    listed, exact, loose, total = list[str](), dict[int, list[str]](), dict[int, list[str]](), 0
    for total, name in enumerate(images, start=1):
        if total <= SHOWN:
            listed.append(name)
        forms = [_plain(name)] if suffixes else [_plain(name), _stem(_plain(name))]
        place = next((whole[form] for form in forms if form in whole), None)
        if place is not None:
            exact.setdefault(place, []).append(name)
            continue
        place = next((found for form in forms if (found := last.get(Path(form).name)) is not None), None)
        if place is not None:
            loose.setdefault(place, []).append(name)
    claims = {**loose, **exact}
    places = {names[0]: place for place, names in claims.items() if len(names) == 1}
    ambiguous = sum(len(names) for names in claims.values() if len(names) > 1)
    if not places:
        raise UsageError(
            f"None of the {counted(total, 'image')} of the run is in the truth {where}, which has "
            f"{counted(len(truth), 'image')}. Names in the run: {_shown(listed)}. Names in the truth: {_shown(truth)}. "
            "Images are matched by file name, and then by its last part where that is unique."
        )
    return MatchedImages(places, total, len(truth), ambiguous)


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _stem(name: str) -> str:
    return str(Path(name).with_suffix("")) if Path(name).suffix else name


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int | None]:
    """Return name → index; None for names that come several times."""
    found: dict[str, int | None] = {}
    for name, place in pairs:
        found[name] = None if name in found else place
    return found


def _shown(names: Sequence[str]) -> str:
    more = ", …" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more


def simple(name: str) -> str:
    """Return a name without case, blanks, hyphens and underscores."""
    return BLANKS.sub("", name.casefold())


@dataclass(frozen=True, slots=True)
class MatchedLabels:
    """The categories of a truth as labels of the run.

    Attributes:
        labels: category → label of the run, or the category's own name where none matches.
        missing: categories that are no label.
        unused: labels that are no category.
    """

    labels: dict[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def notes(self, labels: Sequence[str]) -> list[str]:
        """Return a sentence for the categories without a label, and one for the labels without a category."""
        notes = []
        if self.missing:
            named = ", ".join(f"{name!r}{nearest(name, labels).rstrip('.')}" for name in self.missing[:SHOWN])
            more = f" and {len(self.missing) - SHOWN} more" if len(self.missing) > SHOWN else ""
            notes.append(
                f"The truth has {counted(len(self.missing), 'category', 'categories')} that are no label of the run: "
                f"{named}{more}. The run cannot be right there, so they count with an IoU of 0."
            )
        if self.unused:
            named = ", ".join(map(repr, self.unused[:SHOWN]))
            more = f" and {len(self.unused) - SHOWN} more" if len(self.unused) > SHOWN else ""
            notes.append(
                f"The run has {counted(len(self.unused), 'label')} that are no category of the truth: {named}{more}. "
                "Their masks count as no mask."
            )
        return notes


def match_labels(
    categories: Iterable[str], labels: Sequence[str], words: Mapping[str, Sequence[str]], where: Path
) -> MatchedLabels:
    """Match the categories of a truth with the labels of a run. Case, blanks, hyphens and underscores do not count.

    Args:
        categories: names in the truth.
        labels: labels of the run.
        words: label → its synonyms, which match too.
        where: file or folder of the truth, for messages.

    Raises:
        UsageError: no category matches.
    """
    known = {simple(word): label for label in labels for word in words.get(label, ())}
    known |= {simple(label): label for label in labels}
    found = {name: known.get(simple(name)) for name in categories}
    used = {label for label in found.values() if label is not None}
    if not used:
        raise UsageError(
            f"The truth {where} has none of the run's labels. Its categories: {_shown(list(found)) or 'none'}. "
            f"Labels of the run: {_shown(labels)}. Name the categories like the labels, or give the run synonyms, as "
            "in 'car: car, automobile'."
        )
    missing = tuple(name for name, label in found.items() if label is None and simple(name) != "background")
    unused = tuple(label for label in labels if label not in used)
    return MatchedLabels({name: label or name for name, label in found.items()}, missing, unused)
