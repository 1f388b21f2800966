"""Labels as people type them: their syntax, files with one label a line, and texts that cannot be labels."""

from __future__ import annotations

import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovseg_batch import datasets
from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.wording import spelled

LIST_FILE = ".txt"  # a text that ends so names a file of labels
FILE_MARK = "@"  # in front of the name of any other file of labels
COMMENT = "#"
WIDE = str.maketrans("，、；：", ",,;:")  # separators as Chinese and Japanese keyboards type them
QUOTES = ('""', "''", "“”", "„“", "‘’", "«»")

ParsedLabel = dict[str, Any]


def parse_labels(value: Any) -> Any:
    """Return labels in any of the forms of the setting `labels` as a tuple of mappings.

    Args:
        value: `"car, road, sky"`; with synonyms `"person: person, people; sky"` (`;` or a newline after a label with
            a colon); a list of labels or of mappings `{name, synonyms, threshold, …}`; a mapping from each name to its
            words. Any other value is returned unchanged.

    Raises:
        ValueError: a comma before a label with synonyms.
    """
    if isinstance(value, str):
        entries = re.split("[;\n]", value.translate(WIDE))
        parts = (part for entry in entries for part in ([entry] if ":" in entry else entry.split(",")))
        return tuple(_parse_label(part) for part in parts if part.strip())
    if isinstance(value, Mapping):
        return tuple(
            {"name": name, **words} if isinstance(words, Mapping) else {"name": name, "synonyms": split_words(words)}
            for name, words in value.items()
        )
    if isinstance(value, Sequence):
        return tuple(_parse_label(entry) if isinstance(entry, str) else entry for entry in value)
    return value


def _parse_label(entry: str) -> ParsedLabel:
    name, colon, words = entry.partition(":")
    if colon and "," in name:
        example = "car; person: person, people"
        raise ValueError(f"put ';' between labels where one has synonyms, as in {example!r}")
    return {"name": _clean(name), "synonyms": tuple(map(_clean, split_words(words)))}


def _clean(word: str) -> str:
    """Return a word without blanks and quotes around it, in Unicode's composed form."""
    word = unicodedata.normalize("NFC", word.strip())
    return word[1:-1].strip() if len(word) > 2 and word[0] + word[-1] in QUOTES else word


def split_words(value: Any) -> Any:
    """Return the words of a text with commas, or of a list, without empty ones. Other values are returned unchanged."""
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Sequence):
        return value
    words = (part.strip() if isinstance(part, str) else part for part in parts)
    return tuple(word for word in words if word != "")


def split_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the names of labels in texts with commas, semicolons or newlines, each name once."""
    names = (name.strip() for text in texts for name in re.split("[,;\n]", text))
    return tuple(dict.fromkeys(name for name in names if name))


def format_labels(labels: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return (name, synonyms) pairs as one text that `parse_labels` reads."""
    return "; ".join(f"{name}: {', '.join(synonyms)}" if synonyms else name for name, synonyms in labels)


def read_labels(texts: Sequence[str]) -> str | list[ParsedLabel] | None:
    """Return the labels of all texts together.

    Args:
        texts: each in the syntax of `parse_labels`, or a file of labels (`NAME.txt`, or `@NAME` for any name), or
            `dataset:NAME` alone.

    Returns:
        parsed labels; of `dataset:NAME` the text itself, because a data set also has settings; None without a text.

    Raises:
        UsageError: a file that cannot be read, a text that names another file or a folder, or wrong syntax.
    """
    if not texts:
        return None
    texts = [text.strip() for text in texts]
    of_dataset = [text for text in texts if text.startswith(datasets.PREFIX)]
    if not of_dataset:
        return [label for text in texts for label in _read(text)]
    if len(texts) > 1:
        raise UsageError(
            f"labels: {of_dataset[0]} has its own background and settings, so no other labels can be added to it. "
            f"Give it alone, or write its classes into a file: {_given('@FILE')}."
        )
    return of_dataset[0]


def _read(text: str) -> list[ParsedLabel]:
    if text.startswith(FILE_MARK):
        return _read_file(Path(text.removeprefix(FILE_MARK)))
    if text.lower().endswith(LIST_FILE) and (_mode(text) is not None or not re.search("[,;:\n]", text)):
        return _read_file(Path(text))
    labels = _parse(text, "labels")
    for label in labels:
        if not label["synonyms"]:
            _refuse_path(label["name"], alone=label["name"] == text)
    return labels


def _parse(text: str, where: str) -> list[ParsedLabel]:
    try:
        return list(parse_labels(text))
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _read_file(file: Path) -> list[ParsedLabel]:
    """Read one label from each line; empty lines and lines that begin with `#` are skipped."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        near = nearest(file.name, (entry.name for entry in file.parent.iterdir())) if file.parent.is_dir() else ""
        raise UsageError(f"labels: there is no file {file}.{near}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"labels: {file} is not UTF-8 text ({error}). Save it as UTF-8, one label a line.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"labels: cannot read {file}: {getattr(error, 'strerror', None) or error}.") from None
    labels = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith(COMMENT):
            continue
        found = _parse(line, f"{file} line {number}")
        if len(found) != 1:
            raise UsageError(
                f"{file} line {number}: {line.strip()!r} holds {len(found)} labels. Write one label a line; "
                "synonyms follow a colon, as in 'person: person, people'."
            )
        labels += found
    if not labels:
        raise UsageError(f"labels: {file} holds no label. Write one label a line.")
    return labels


def _refuse_path(name: str, alone: bool) -> None:
    """Raise UsageError if a label names a file or folder.

    Args:
        name: a label without synonyms.
        alone: no other label is in the same text. Only then does a word without `/` and suffix name a folder: labels
            in a list are clear, and photographs are often sorted into folders that have the names of labels.
    """
    if name.startswith(FILE_MARK) or name.lower().endswith(LIST_FILE):
        raise UsageError(f"labels: a file of labels such as {name} stands alone. Write {_given(name)} alone.")
    mode = _mode(name)
    looks_like_path = "/" in name or Path(name).suffix != "" or (mode is not None and stat.S_ISREG(mode))
    if mode is None or not (alone or looks_like_path):
        return
    if stat.S_ISDIR(mode):
        kind, instead = "folder", f"Images are given as {spelled('INPUT', 'images')}."
    else:
        kind, instead = "file", f"To read one label from each of its lines, write {_given('@' + name)}."
    raise UsageError(
        f"labels: {name!r} is the name of a {kind}. {instead} If it is a label, write {_given(f'{name}: {name}')}."
    )


def _given(text: str) -> str:
    """Return how the caller gives a text of labels."""
    return spelled(f"--labels '{text}'", f"labels={text!r}")


def _mode(name: str) -> int | None:
    """Return the file mode of a path; None where there is nothing, or the name cannot be a path."""
    try:
        return Path(name).stat().st_mode
    except (OSError, ValueError):
        return None
