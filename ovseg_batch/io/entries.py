"""The records of listing: an INPUT, its images, and counts of what was skipped."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from ovseg_batch.io import heif
from ovseg_batch.units import counted

Field = tuple[str, pa.DataType]

EXAMPLES = 3  # files that a note names at most
SHOWN = 160  # characters of a quoted text that a message shows at most
COCO_ID = "coco_id"  # column: the id of an image in the COCO file that lists it
# lone surrogates; the range that is left out encodes raw bytes of file names
SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ufffe\uffff]")  # characters that break lines, terminals or XML


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of an INPUT. `where` names the line or folder that lists it, for messages.

    `bytes` and `mtime_ns` are set where a listing returns them. Those of local files are read later.
    """

    path: str
    file_name: str
    where: str
    key: str | None = None
    width: int | None = None
    height: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    bytes: int | None = None
    mtime_ns: int | None = None


@dataclass(slots=True)
class Counts:
    """Counts of skipped and unusual files of a listing, with a few examples of each kind.

    Attributes:
        missing: listed files that do not exist.
        duplicates: images that are listed a second time.
        skipped: files without the suffix of an image.
        left_out: folders that this program wrote.
        locked: folders that cannot be read.
        system: files and folders of the operating system, such as thumbnails.
        excluded: files and folders that `manifest.exclude` names.
        columns: columns of a list that a manifest cannot hold.
        heif: images that need a package which is not installed.
        numbered: images that lose their COCO ids, because not every image has a unique one.
    """

    missing: int = 0
    duplicates: int = 0
    skipped: int = 0
    left_out: int = 0
    locked: int = 0
    system: int = 0
    excluded: int = 0
    columns: int = 0
    heif: int = 0
    numbered: int = 0
    examples: dict[str, dict[str, str]] = field(default_factory=dict)

    def count(self, kind: str, example: str = "", of: str = "") -> None:
        """Count one file of a kind. `of` identifies it: every `of` has one example."""
        setattr(self, kind, getattr(self, kind) + 1)
        named = self.examples.setdefault(kind, {})
        if example and len(named) < EXAMPLES:
            named.setdefault(of or example, example if len(example) <= SHOWN else f"{example[:SHOWN]}…")

    def add(self, other: Counts) -> None:
        """Add the counts of another listing."""
        for name in KINDS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
            named = {**self.examples.get(name, {}), **other.examples.get(name, {})}
            self.examples[name] = dict(itertools.islice(named.items(), EXAMPLES))

    def notes(self) -> list[str]:
        """Return one sentence for each kind that was counted."""
        notes = []
        for kind, (one, many, what) in NOTES.items():
            if count := getattr(self, kind):
                named = ", ".join(self.examples.get(kind, {}).values())
                more = ", …" if count > EXAMPLES else ""
                notes.append(f"{counted(count, one, many)} {what}" + (f" ({named}{more})" if named else ""))
        return notes

    def sentences(self) -> str:
        """Return the notes as one text to append to a message."""
        return "".join(f" {note.removesuffix('.')}." for note in self.notes())


NOTES = {
    "missing": ("file is", "files are", "missing and will fail"),
    "duplicates": ("image is", "images are", "listed more than once and used once"),
    "skipped": ("file is", "files are", "skipped: no suffix of an image"),
    "left_out": ("folder is", "folders are", "skipped: written by ovseg-batch"),
    "locked": ("folder is", "folders are", "skipped: unreadable"),
    "system": ("file or folder is", "files or folders are", "skipped: thumbnails or trash of the operating system"),
    "excluded": ("file or folder is", "files or folders are", "skipped by manifest.exclude"),
    "columns": ("column is", "columns are", "skipped: a manifest holds texts, numbers and times only"),
    "numbered": ("image is", "images are", "numbered from 1, because not every image has a unique COCO id"),
    "heif": ("image is", "images are", f"in HEIF, which cannot be read yet. {heif.ADVICE}"),
}
KINDS = tuple(one.name for one in fields(Counts) if one.name != "examples")


@dataclass(slots=True)
class Source:
    """One INPUT: its entries, and the columns that it adds to the manifest.

    Attributes:
        folder: name of the folder; empty for other inputs.
        place: parts of the path that its file names are relative to. They distinguish inputs with equal names.
        counts: skipped files. Complete once `entries` is exhausted.
    """

    name: str
    fields: list[Field]
    entries: Iterator[Entry]
    folder: str = ""
    place: tuple[str, ...] = ()
    counts: Counts = field(default_factory=Counts)


def plain(name: str) -> str:
    """Return a file name that any format can hold.

    Control characters, bytes that are not UTF-8 and halves of surrogate pairs become escapes such as `\\xNN`.
    """
    name = SURROGATES.sub(_escaped, name)
    return without_controls(os.fsencode(name).decode("utf-8", "backslashreplace"))


def without_controls(text: str) -> str:
    """Return a text with its control characters as escapes, because they break lines, XML and terminals."""
    return CONTROLS.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
