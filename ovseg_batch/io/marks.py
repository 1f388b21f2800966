"""Marks that identify files and folders that this program wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ovseg_batch.errors import UsageError
from ovseg_batch.io.atomic import remove_leftovers, temporaries_of

PLAN = Path("stages", "plan.json")  # in a workdir
MANIFEST = "manifest.parquet"  # in a workdir
EXPORT = Path(".ovseg-export", "export.json")  # in an export that is a folder
REPORT = Path("assets", "run.txt")  # in a report, beside its page
COMPARISON = Path("assets", "comparison.txt")  # in the page of a comparison
REPORT_PAGE = Path("index.html")

DESCRIPTION = "masks by ovseg_batch"  # `info.description` of COCO files
IMAGE_IDS = "image_ids"  # `info` of COCO files: the column of the manifest that holds the ids; without it: row + 1


def has_mark(file: Path, mark: bytes) -> bool:
    """Return whether a file is Parquet with the given mark in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return mark in (pq.read_metadata(file).metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False


def check_replaceable(file: Path, is_ours: Callable[[Path], bool]) -> None:
    """Require that a file may be written. Remove its temporary files of killed commands.

    Args:
        is_ours: returns whether the same command wrote a file.

    Raises:
        UsageError: another program's file exists at that path.
    """
    remove_leftovers(temporaries_of(file))
    if file.exists() and not (file.is_file() and is_ours(file)):
        raise UsageError(f"{file} exists, and this command did not write it. Choose another name, or delete the file.")


def is_workdir(folder: Path) -> bool:
    """Return whether a run has written its plan into the folder."""
    return os.path.isfile(folder / PLAN)  # False in an unreadable folder, where `Path.is_file` raises


def is_ours(folder: Path) -> bool:
    """Return whether the folder is a workdir, an export, a report or a comparison."""
    is_page = any(os.path.isfile(folder / mark) for mark in (REPORT, COMPARISON))
    is_report = is_page and os.path.isfile(folder / REPORT_PAGE)
    return is_report or is_workdir(folder) or os.path.isfile(folder / EXPORT)
