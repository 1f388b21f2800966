"""An image as an INPUT names it, and the INPUT that names it."""

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

EXAMPLES = 3  # how many files a note names
SHOWN = 160  # characters of a foreign text that a message shows
COCO_ID = "coco_id"  # column: the id of an image in the COCO file that lists it
HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of surrogate pairs; the others stand for bytes in file names
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ufffe\uffff]")  # XML allows none of them but three


@dataclass(frozen=True, slots=True)
class Entry:
    """An image as its source names it. `where` says in which line or folder, for messages.

    `bytes` and `mtime_ns` are known where a listing gives them. Those of a local file are read later.
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
    """What a listing passes over or finds odd: how many of each kind, and the first ones of it.

    Attributes:
        missing: listed files that are not there.
        duplicates: images that are listed a second time.
        skipped: files that are no images by their names.
        left_out: folders that this program wrote.
        locked: folders that cannot be read.
        system: files and folders of the operating system, such as thumbnails.
        excluded: files and folders that `manifest.exclude` names.
        columns: columns of a list that a manifest cannot hold.
        heif: images that need a package which is not installed.
        numbered: images that lose their COCO ids, because not every image has one of its own.
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
        """Count one more of a kind. `of`: what the example is about; of each thing there is one example."""
        setattr(self, kind, getattr(self, kind) + 1)
        named = self.examples.setdefault(kind, {})
        if example and len(named) < EXAMPLES:
            named.setdefault(of or example, example if len(example) <= SHOWN else f"{example[:SHOWN]}…")

    def add(self, other: Counts) -> None:
        """Add what another listing has counted."""
        for name in KINDS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
            named = {**self.examples.get(name, {}), **other.examples.get(name, {})}
            self.examples[name] = dict(itertools.islice(named.items(), EXAMPLES))

    def notes(self) -> list[str]:
        """Return one sentence for each kind of oddity."""
        notes = []
        for kind, (one, many, what) in NOTES.items():
            if count := getattr(self, kind):
                named = ", ".join(self.examples.get(kind, {}).values())
                more = ", …" if count > EXAMPLES else ""
                notes.append(f"{counted(count, one, many)} {what}" + (f" ({named}{more})" if named else ""))
        return notes

    def sentences(self) -> str:
        """Return the notes as sentences that follow another one."""
        return "".join(f" {note.removesuffix('.')}." for note in self.notes())


NOTES = {
    "missing": ("file is", "files are", "not there; their rows will fail"),
    "duplicates": ("image is", "images are", "listed more than once and taken once"),
    "skipped": ("file is", "files are", "left out, having no suffix of an image"),
    "left_out": ("folder is", "folders are", "left out, being written by ovseg-batch"),
    "locked": ("folder is", "folders are", "left out, being unreadable"),
    "system": ("file or folder is", "files or folders are", "left out, being thumbnails or trash of a system"),
    "excluded": ("file or folder is", "files or folders are", "left out by manifest.exclude"),
    "columns": ("column is", "columns are", "left out, because a manifest holds texts, numbers and times only"),
    "numbered": ("image is", "images are", "numbered from 1, because not every image has a COCO id of its own"),
    "heif": ("image is", "images are", f"in HEIF, which cannot be read yet. {heif.ADVICE}"),
}
KINDS = tuple(one.name for one in fields(Counts) if one.name != "examples")


@dataclass(slots=True)
class Source:
    """One INPUT: what it adds to the manifest's columns, and its entries.

    Attributes:
        folder: the own name of a folder; empty for other inputs.
        place: parts of the path at which its file names start. They tell inputs apart whose names are equal.
        counts: what is passed over. Known once `entries` has ended.
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
    name = HALVES.sub(_escaped, name)
    return without_controls(os.fsencode(name).decode("utf-8", "backslashreplace"))


def without_controls(text: str) -> str:
    """Return a text with its control characters as escapes, because they break lines, XML and terminals."""
    return CONTROLS.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
