"""Definitions of labels from a file in the format of ITACLIP: one `NAME >= TEXT` a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovseg_batch.errors import UsageError, nearest

MARK = ">="  # between the name of a label and its definition
FORM = f"NAME {MARK} TEXT"
NAMED = 3  # labels without a definition that an error names


def read_definitions(file: str) -> dict[str, str]:
    """Return name → definition of every line of a file. Empty lines are skipped.

    Raises:
        UsageError: the file cannot be read, or a line has another form, or repeats a name.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        name, mark, text = (part.strip() for part in line.partition(MARK))
        if not (name and mark and text):
            raise UsageError(f"definitions: line {number} of {file} is {line.strip()[:60]!r}. Write {FORM!r}.")
        if _folded(name) in found:
            raise UsageError(f"definitions: line {number} of {file} defines {name!r} again. Remove one of the lines.")
        found[_folded(name)] = text
    return found


def with_definitions(labels: Sequence[Any], file: str) -> list[Any]:
    """Return labels with the definitions of a file. A label that has a definition keeps it.

    A line belongs to the label that has its name, or one of its synonyms, in any capitals. Other lines are ignored.

    Args:
        labels: mappings `{name, synonyms, definition, …}`. Other values are returned unchanged.

    Raises:
        UsageError: as `read_definitions`; or a label has no line.
    """
    definitions = read_definitions(file)
    completed, missing = [], []
    for label in labels:
        if isinstance(label, Mapping) and not label.get("definition"):
            words = [str(label.get("name", "")), *map(str, label.get("synonyms") or ())]
            text = next((definitions[_folded(word)] for word in words if _folded(word) in definitions), "")
            if not text:
                missing.append(words[0])
            label = {**label, "definition": text}
        completed.append(label)
    if missing:
        names = ", ".join(map(repr, missing[:NAMED])) + (f" and {len(missing) - NAMED} more" if missing[NAMED:] else "")
        raise UsageError(
            f"definitions: {file} has no line for {names}.{nearest(missing[0], definitions)} "
            f"Add lines {FORM!r}, with the label or one of its synonyms as the name."
        )
    return completed


def _folded(name: str) -> str:
    return name.strip().casefold()


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UsageError(f"definitions: there is no file {file}. Each of its lines is {FORM!r}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"definitions: {file} is not UTF-8 text ({error}). Save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"definitions: cannot read {file}: {getattr(error, 'strerror', None) or error}.") from None
