"""Kill a run at every failpoint of every scope, resume it, and compare with an undisturbed run.

python -m tests.harness crash-matrix
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from ovseg_batch.failpoints import EXPORT_POINTS, FILE_POINTS, SHARD_POINTS
from ovseg_batch.settings import Config, EditConfig
from ovseg_batch.stages.registry import stage_names
from tests.harness.job import Job, contents, difference

HERE = ("--workers", "0")  # one process, so that the first write is the first of the run
SECOND = {"write": 6, "fsync": 5, "rename": 5, "renamed": 5, "row": 4, "data": 2, "commit": 2, "committed": 2}

STAGES = stage_names(Config(edit=EditConfig(mode="cutout")))  # as `Job` runs them

#: (scope, point, which time it is reached): in the second shard of each stage, and in every other file of a run.
CELLS = [(stage, point, SECOND[point]) for stage in STAGES for point in SHARD_POINTS] + [
    (scope, point, 1) for scope in ("manifest", "export") for point in FILE_POINTS
]
CELLS += [("export", point, 1) for point in EXPORT_POINTS]


def try_cell(job: Job, workdir: Path, cell: tuple[str, str, int], wanted: dict[str, str]) -> list[str]:
    """Kill at that point, resume; what is wrong, nothing where all is well."""
    scope, point, time = cell
    killed = job.run(workdir, *HERE, points=f"{scope}.{point}:{time}")
    if killed.code != -signal.SIGKILL:
        return [f"was not killed, ended with {killed.code}: {killed.stderr}"]
    resumed = job.run(workdir, *HERE)
    return difference(workdir, wanted) if resumed.code == 0 else [f"ended with {resumed.code}: {resumed.stderr}"]


@click.command()
def main() -> None:
    """Kill a run at every failpoint of every scope, resume it, compare, and print a table."""
    root = Path(tempfile.mkdtemp(prefix="ovseg-matrix-"))
    job = Job(root)
    job.run(root / "undisturbed", *HERE)
    wanted = contents(root / "undisturbed")
    results: dict[tuple[str, str], str] = {}
    for number, cell in enumerate(CELLS):
        wrong = try_cell(job, root / f"run-{number}", cell, wanted)
        results[cell[:2]] = "differs" if wrong else "same"
        for line in wrong:
            click.echo(f"{cell}: {line}")
    scopes = list(dict.fromkeys(scope for scope, _, _ in CELLS))
    click.echo("| killed at | " + " | ".join(scopes) + " |")
    click.echo("|---|" + "---|" * len(scopes))
    for point in (*SHARD_POINTS, *EXPORT_POINTS):
        click.echo(f"| {point} | " + " | ".join(results.get((scope, point), "") for scope in scopes) + " |")
    shutil.rmtree(root)
    sys.exit("differs" in results.values())
