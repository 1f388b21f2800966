"""Write `failures.csv`: every failed image, with the stage and the reason."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from ovseg_batch.io.atomic import atomic_path, create_text
from ovseg_batch.io.entries import without_controls

COLUMNS = ("row", "key", "stage", "code", "message")


def write_failures(path: Path, failures: Iterable[tuple[int, str, str, str, str]]) -> int:
    """Write one line per failure (row, key, stage, code, message), atomically. Return their number."""
    count = 0
    with atomic_path(path) as temporary, create_text(temporary) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for failure in failures:
            writer.writerow([plain(str(field)) for field in failure])
            count += 1
    return count


def plain(text: str) -> str:
    """Escape a text so that spreadsheets do not read it as a formula, and replace control characters."""
    text = without_controls(text.replace("\r", " ").replace("\n", " "))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
