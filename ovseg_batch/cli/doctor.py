"""The command `doctor`, which checks whether a run will work on a machine."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovseg_batch.cli.base import EXIT_ERROR, EXIT_OK, ending, guarded, log
from ovseg_batch.cli.options import SYNTAX, config_option, labels_option, set_option
from ovseg_batch.engine.stopping import EXIT_INTERRUPTED
from ovseg_batch.errors import Interrupted
from ovseg_batch.settings.labels import read_labels
from ovseg_batch.units import counted

if TYPE_CHECKING:
    from ovseg_batch.doctor import Diagnosis
    from ovseg_batch.doctor.trial import Trial

WIDTH = 118  # columns of the report
NAMES = 18  # columns of a check's name
INDENT = 8 + NAMES + 1


@click.command()
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@config_option("Settings of the run: a YAML file, or a name from `methods`.")
@labels_option(f"Labels of the run, which the trial needs: {SYNTAX}")
@click.option(
    "-o",
    "--output",
    "workdir",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Workdir of the run. It need not exist.  [default: this folder]",
)
@set_option("One setting, as in refine.vote=0.5.")
@click.option("--device", help="auto, cpu, cuda or cuda:1.")
@click.option(
    "--images", type=click.IntRange(min=1), default=8, show_default=True, help="Number of images in the trial run."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@guarded
def doctor(
    inputs: tuple[str, ...],
    config_file: Path | None,
    labels: tuple[str, ...],
    workdir: Path,
    overrides: tuple[str, ...],
    device: str | None,
    images: int,
    as_json: bool,
) -> int:
    """Check whether a run will work on this machine.

    Checks the GPUs, cores, memory and packages, the file system of the workdir, and the weights that the settings
    need. With INPUT it also runs a few of its images through every stage, and prints their memory, their failures, and
    how much the whole INPUT will write. `try` forecasts the time. Exit code 1: a check failed. All files that it writes
    are deleted.
    """
    from ovseg_batch.doctor import Request, diagnose

    flags = {"labels": read_labels(labels), "run.device": device}
    request = Request(inputs, workdir, config_file, overrides, flags, images)
    try:
        found = diagnose(request, lambda text: log.info("%s …", text))
    except (KeyboardInterrupt, Interrupted):
        ending.error("stopped. All temporary files were deleted.")
        return EXIT_INTERRUPTED
    if as_json:
        click.echo(json.dumps(found.to_record(), indent=2, ensure_ascii=False))
    else:
        _print(found)
    return EXIT_OK if found.ok else EXIT_ERROR


def _print(found: Diagnosis) -> None:
    """Print one paragraph per check, the results of the trial, and a last line with the verdict."""
    for check in found.checks:
        first, *following = _wrapped(check.found) or [""]
        click.echo(f"{check.status:8}{check.name:{NAMES}} {first}")
        for line in (*following, *(_wrapped(f"→ {check.next}") if check.next else ())):
            click.echo(" " * INDENT + line)
    if found.trial is not None:
        _print_trial(found.trial)
    bad = [check.name for check in found.checks if check.status == "failed"]
    doubtful = [check.name for check in found.checks if check.status == "warning"]
    click.echo()
    if bad:
        click.echo(f"FAILED: {', '.join(bad)}")
    else:
        click.echo(f"OK, with warnings: {', '.join(doubtful)}" if doubtful else "OK")


def _wrapped(text: str) -> list[str]:
    """Wrap a text to the column beside the names. Paths and commands are never broken."""
    return [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False)
    ]


def _print_trial(trial: Trial) -> None:
    """Print the table of the stages, and the estimated size for the whole INPUT."""
    warm_up = counted(trial.warm_up, "image")
    click.echo(f"\n{counted(trial.images, 'image')} on {trial.device}, after {warm_up} of warm-up:")
    gpu = any(stage.gpu_memory is not None for stage in trial.stages)
    click.echo(f"{'stage':10}{'ms/image':>10}{'memory':>12}{'GPU memory' if gpu else '':>12}{'written/image':>16}")
    for stage in trial.stages:
        card = _size(stage.gpu_memory) if stage.gpu_memory is not None else ""
        written = _size(stage.written)
        click.echo(f"{stage.name:10}{stage.milliseconds:>10.1f}{_size(stage.memory):>12}{card:>12}{written:>16}")
    for failure in trial.failures:
        click.echo(f"failed: {failure.key}: {failure.stage}: {failure.code}: {failure.message}")
    click.echo(
        f"{counted(trial.listed, 'image')}: about {_size(trial.bytes)}. "
        "`ovseg-batch try` forecasts the time, from images drawn at random."
    )


def _size(count: float) -> str:
    from ovseg_batch.units import size

    return size(count)
