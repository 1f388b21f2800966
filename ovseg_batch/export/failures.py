"""`failures.csv`: every image that has no masks, which stage failed it, and why."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from ovseg_batch.io.atomic import atomic_path, create_text
from ovseg_batch.io.entries import without_controls

COLUMNS = ("row", "key", "stage", "code", "message")


def write_failures(path: Path, failures: Iterable[tuple[int, str, str, str, str]]) -> int:
    """Write one line per failure (row, key, stage, code, message), atomically; how many there were."""
    count = 0
    with atomic_path(path) as temporary, create_text(temporary) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for failure in failures:
            writer.writerow([plain(str(field)) for field in failure])
            count += 1
    return count


def plain(text: str) -> str:
    """Keep a spreadsheet from taking a file name for a formula, and control characters out of lines and terminals."""
    text = without_controls(text.replace("\r", " ").replace("\n", " "))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
