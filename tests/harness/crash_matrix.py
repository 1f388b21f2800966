"""Kill a run at every failpoint of every scope, resume it, and compare with an undisturbed run.

python -m tests.harness crash-matrix
python -m tests.harness crash-matrix --only hybrid     # one configuration
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from ovseg_batch.failpoints import EXPORT_POINTS, FILE_POINTS, SHARD_POINTS
from tests.harness.configurations import CONFIGURATIONS, options, save_models, stages_of
from tests.harness.job import Job, contents, difference

HERE = ("--workers", "0")  # one process, so that the first write is the first of the run
SECOND = {"write": 6, "fsync": 5, "rename": 5, "renamed": 5, "row": 4, "data": 2, "commit": 2, "committed": 2}
FIRST = "prompted"  # the configuration whose cells include the files of a run
OTHER_MODELS = {("matte", "edit"), ("hybrid", "dense")}  # a ViTMatte and a TIPSv2

Cell = tuple[str, str, int]


def shard_cells(stages: tuple[str, ...]) -> list[Cell]:
    """Return (scope, point, which time it is reached): in the second shard of each stage."""
    return [(stage, point, SECOND[point]) for stage in stages for point in SHARD_POINTS]


#: configuration → its cells: for the first, also every other file of a run
MATRIX: dict[str, list[Cell]] = {name: shard_cells(stages_of(name)) for name in CONFIGURATIONS}
MATRIX[FIRST] += [(scope, point, 1) for scope in ("manifest", "export") for point in FILE_POINTS]
MATRIX[FIRST] += [("export", point, 1) for point in EXPORT_POINTS]


def sample() -> list[tuple[str, Cell]]:
    """Return one cell of every stage that the first configuration has not, and of those with another model.

    The points are taken in turn.
    """
    found, seen = list[tuple[str, Cell]](), {*stages_of(FIRST)}
    for name in MATRIX:
        for stage in stages_of(name):
            if stage not in seen or (name, stage) in OTHER_MODELS:
                point = SHARD_POINTS[len(found) % len(SHARD_POINTS)]
                found.append((name, (stage, point, SECOND[point])))
                seen.add(stage)
    return found


def try_cell(job: Job, workdir: Path, cell: Cell, wanted: dict[str, str], more: tuple[str, ...] = ()) -> list[str]:
    """Kill at that point, resume; what is wrong, nothing where all is well."""
    scope, point, time = cell
    killed = job.run(workdir, *HERE, *more, points=f"{scope}.{point}:{time}")
    if killed.code != -signal.SIGKILL:
        return [f"was not killed, ended with {killed.code}: {killed.stderr}"]
    resumed = job.run(workdir, *HERE, *more)
    return difference(workdir, wanted) if resumed.code == 0 else [f"ended with {resumed.code}: {resumed.stderr}"]


@click.command()
@click.option("--only", type=click.Choice([*MATRIX]), help="One configuration alone.")
def main(only: str | None) -> None:
    """Kill runs at every failpoint of every scope, resume them, compare, and print a table for each configuration."""
    root = Path(tempfile.mkdtemp(prefix="ovseg-matrix-"))
    job = Job(root)
    save_models(root / "models")
    wrong = [name for name in ([only] if only else MATRIX) if not print_table(job, root, name)]
    shutil.rmtree(root)
    sys.exit(bool(wrong))


def print_table(job: Job, root: Path, name: str) -> bool:
    """Try every cell of a configuration, and print the results. Return whether all are well."""
    more = options(name, root / "models")
    job.run(root / name, *HERE, *more)
    wanted = contents(root / name)
    results: dict[tuple[str, str], str] = {}
    for number, cell in enumerate(MATRIX[name]):
        wrong = try_cell(job, root / f"{name}-{number}", cell, wanted, more)
        results[cell[:2]] = "differs" if wrong else "same"
        for line in wrong:
            click.echo(f"{cell}: {line}")
        shutil.rmtree(root / f"{name}-{number}", ignore_errors=True)
    scopes = list(dict.fromkeys(scope for scope, _, _ in MATRIX[name]))
    points = (*SHARD_POINTS, *EXPORT_POINTS) if name == FIRST else SHARD_POINTS
    click.echo(f"| {name}: killed at | " + " | ".join(scopes) + " |")
    click.echo("|---|" + "---|" * len(scopes))
    for point in points:
        click.echo(f"| {point} | " + " | ".join(results.get((scope, point), "") for scope in scopes) + " |")
    return "differs" not in results.values()
