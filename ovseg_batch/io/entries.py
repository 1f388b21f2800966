"""An image as an INPUT names it, and the INPUT that names it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

Field = tuple[str, pa.DataType]

COCO_ID = "coco_id"  # column: the id of an image in the COCO file that lists it

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ufffe\uffff]")  # XML allows none of them but three


@dataclass(frozen=True, slots=True)
class Entry:
    """An image as its source names it. `where` says in which line or folder, for messages.

    `bytes` and `mtime_ns` are known where a listing told them; of a local file they are asked later.
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
class Source:
    """One INPUT: what it adds to the manifest's columns, and its entries.

    Attributes:
        folder: the own name of a folder; empty for other inputs.
        skipped: how many files are no images by their names. Known once `entries` has ended.
        left_out: folders below INPUT that this program wrote. Known once `entries` has ended.
    """

    name: str
    fields: list[Field]
    entries: Iterator[Entry]
    folder: str = ""
    skipped: int = 0
    left_out: list[str] = field(default_factory=list)


def plain(name: str) -> str:
    """Return a file name that any format can hold: control characters and bytes that are not UTF-8 become `\\xNN`."""
    return without_controls(os.fsencode(name).decode("utf-8", "backslashreplace"))


def without_controls(text: str) -> str:
    """Return a text with its control characters as escapes, because they break lines, XML and terminals."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
