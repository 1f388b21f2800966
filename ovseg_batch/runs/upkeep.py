"""Upkeep of a workdir: verify what was committed, and remove what no run uses."""

from __future__ import annotations

from pathlib import Path

from ovseg_batch.export.edited import unpublish_edited, verify_edited
from ovseg_batch.workdir.results import EDIT
from ovseg_batch.workdir.store import Problem, Workdir


def verify(workdir: Workdir, repair: bool = False) -> list[Problem]:
    """Return what of a run differs from its commits.

    Args:
        repair: damaged shards lose their commits, and the next run computes them and writes the outputs again. A
            damaged manifest stays, because only a person knows whether the input still holds the same images.

    Raises:
        UsageError: no run there.
    """
    problems = workdir.verify()
    last = workdir.stores()[-1]
    if last.stage == EDIT:
        problems += verify_edited(workdir, last)
    if repair and problems:
        for problem in problems:
            if problem.store is not None and problem.shard is not None:
                problem.store.uncommit(problem.shard)
        unpublish_edited(workdir)
        if all(problem.path != workdir.manifest for problem in problems) or not workdir.manifest.exists():
            workdir.unseal_outputs()
    return problems


def collect_garbage(workdir: Workdir, delete: bool) -> list[tuple[Path, int]]:
    """Return the stage folders that the latest run does not use, and their bytes; delete them with `delete`.

    Raises:
        UsageError: no run there.
    """
    found = [
        (folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
        for folder in workdir.unused()
    ]
    if delete:
        workdir.remove_leftovers()
        for folder, _ in found:
            workdir.remove(folder)
    return found
