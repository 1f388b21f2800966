"""Find the path column of a list of images, and convert its records to entries."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io import remote as urls
from ovseg_batch.io.entries import Entry, plain
from ovseg_batch.io.remote import is_remote

PATH_COLUMNS = (
    *("file_name", "path", "image", "image_path", "filepath", "filename"),
    *("file", "file_path", "image_file", "image_filename", "image_name", "url", "image_url", "uri"),
)

Record = Mapping[str, Any]


def path_column(path: Path, columns: Sequence[str]) -> str:
    """Return the column that holds the paths or URLs. Raises UsageError where there is none."""
    if broken := next((name for name in columns if not is_utf8(name)), None):
        shown = broken.encode("ascii", "backslashreplace").decode()
        raise UsageError(f"{path}: the column {shown} holds half of a surrogate pair, which is no text.")
    if (found := find_column(columns)) is not None:
        return found
    hints = (nearest(name, PATH_COLUMNS) for name in columns)
    raise UsageError(
        f"{path} has no column with the images' paths. It needs one named {', '.join(PATH_COLUMNS[:-1])} or "
        f"{PATH_COLUMNS[-1]}; it has: {plain(', '.join(columns)) or 'none'}.{plain(next((h for h in hints if h), ''))}"
    )


def find_column(columns: Sequence[str]) -> str | None:
    """Return the first known name of a path column. Exact names come before names that differ in case or blanks."""
    folded: dict[str, str] = {}
    for name in columns:
        folded.setdefault(re.sub("[ -]", "_", name.strip().lower()), name)
    exact = next((name for name in PATH_COLUMNS if name in columns), None)
    return exact or next((folded[name] for name in PATH_COLUMNS if name in folded), None)


def make_entry(source: Path, record: Record, column: str, where: str) -> Entry:
    if record[column] is None or record[column] == "":
        raise UsageError(f"{where}: {column} is empty.")
    if not isinstance(record[column], str):
        kind = type(record[column]).__name__
        raise UsageError(f"{where}: {column} must be a path or URL as text, and is of the type {kind}.")
    for name, value in record.items():
        if name != column and isinstance(value, str) and not is_utf8(value):
            raise UsageError(f"{where}: {plain(name)} holds half of a surrogate pair, which is no text.")
    return locate(source, record[column], where, {k: v for k, v in record.items() if k and k != column})


def is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def locate(source: Path, text: str, where: str, extra: dict[str, Any]) -> Entry:
    """Return the entry of a path or URL in a list. Relative paths start at the folder of the list."""
    if is_remote(text):
        full, name = text.strip(), _url_name(text.strip(), where)
    else:
        base = os.path.abspath(source.parent)
        full = os.path.normpath(os.path.join(base, text))
        inside = full.startswith(base.rstrip("/") + "/")
        name = os.path.relpath(full, base) if inside else full.lstrip("/")
    if not name:
        raise UsageError(f"{where}: {plain(text)} is no image but the root of all folders.")
    try:
        if b"\0" in os.fsencode(full):
            raise UsageError(f"{where}: the path holds a NUL character.")
    except UnicodeEncodeError:
        raise UsageError(f"{where}: the path holds half of a surrogate pair, which is no text.") from None
    key = extra.pop("key", None)
    if not isinstance(key, str | int | float | None):
        raise UsageError(f"{where}: key must be a text, and is of the type {type(key).__name__}.")
    width, height = pixels_or_none(extra.pop("width", None)), pixels_or_none(extra.pop("height", None))
    return Entry(full, plain(name), where, None if key in (None, "") else str(key), width, height, extra)


def _url_name(url: str, where: str) -> str:
    try:
        urls.scheme_of(url)
        return urls.name_of(url)
    except (UsageError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from None


def pixels_or_none(value: Any) -> int | None:
    """Return a positive number of pixels, or None where the value is not one."""
    try:
        pixels = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return pixels if 0 < pixels < 1 << 31 else None
