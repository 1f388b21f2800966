"""Marks by which files and folders are recognised as ones that this program wrote."""

from __future__ import annotations

from pathlib import Path

PLAN = Path("stages", "plan.json")  # in a workdir
MANIFEST = "manifest.parquet"  # in a workdir
EXPORT = Path(".ovseg-export", "export.json")  # in an export that is a folder
REPORT = Path("assets", "run.txt")  # in a report, beside its page
REPORT_PAGE = Path("index.html")

DESCRIPTION = "masks by ovseg_batch"  # `info.description` of COCO files


def is_workdir(folder: Path) -> bool:
    """Return whether a run has written its plan into the folder."""
    return (folder / PLAN).is_file()


def is_ours(folder: Path) -> bool:
    """Return whether the folder is a workdir, an export or a report."""
    is_report = (folder / REPORT).is_file() and (folder / REPORT_PAGE).is_file()
    return is_report or is_workdir(folder) or (folder / EXPORT).is_file()
