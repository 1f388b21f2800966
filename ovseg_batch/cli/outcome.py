"""Print the result of a run: counts, notes, and the next command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ovseg_batch.cli.base import EXIT_FAILED_IMAGES, EXIT_OK, log
from ovseg_batch.units import counted
from ovseg_batch.workdir.findings import Findings, edit_note, edit_warning, embedded_note, found_note, label_notes
from ovseg_batch.workdir.store import Workdir

if TYPE_CHECKING:
    from ovseg_batch.runs.pipeline import Outcome


def print_outcome(outcome: Outcome, workdir: Workdir, as_json: bool = False) -> int:
    """Print how a run ended, and return the exit code."""
    if as_json:
        click.echo(json.dumps(_record(outcome, workdir), indent=2, ensure_ascii=False))
    elif outcome.annotations_path is None:
        left = _shards_left(outcome)
        shards = counted(left, "shard is", "shards are")
        click.echo(f"This part is done. {shards} left for the other parts; the last one writes the outputs.")
    else:
        _print_finished(outcome, workdir)
    return EXIT_FAILED_IMAGES if outcome.failures else EXIT_OK


def _print_finished(outcome: Outcome, workdir: Workdir) -> None:
    click.echo(
        f"{counted(outcome.images, 'image')}, {counted(outcome.annotations, 'mask')}: {outcome.annotations_path}"
    )
    if outcome.edited is not None:
        click.echo(f"{counted(outcome.edited, 'edited image')}: {workdir.edited}")
    if outcome.findings is not None:
        print_findings(outcome.findings)
    print_embedded(workdir.read_plan())
    report, retry = (shlex.join(["ovseg-batch", command, str(workdir.root)]) for command in ("report", "retry"))
    if outcome.failures:
        click.echo(f"{counted(outcome.failures, 'image')} failed: {workdir.failures}")
        click.echo(f"next: {report}, or compute the failed images again: {retry}")
    else:
        click.echo(f"next: {report}")


def print_findings(found: Findings) -> None:
    """Print the notes on a finished run. Warnings are log lines."""
    notes = (found_note(found.label_images), *label_notes(found.images, found.label_images), edit_note(found.edits))
    for note in notes:
        if note is not None:
            click.echo(note)
    if warning := edit_warning(found.edits):
        log.warning("warning: %s", warning)


def print_embedded(record: Mapping[str, Any]) -> None:
    """Print a note if small models of the package computed the masks."""
    if note := embedded_note(record.get("embedded_models", ())):
        click.echo(f"note: {note}")


def _shards_left(outcome: Outcome) -> int:
    """Return the number of shards that some stage has not committed."""
    return max(stage.shards - stage.shards_done for stage in outcome.stages)


def _record(outcome: Outcome, workdir: Workdir) -> dict[str, Any]:
    """Return the result of a run as plain values, for JSON."""
    found = outcome.findings
    return {
        "workdir": str(workdir.root),
        "complete": outcome.annotations_path is not None,
        "shards_left": _shards_left(outcome),
        "images": outcome.images,
        "masks": outcome.annotations,
        "failures": outcome.failures,
        "annotations": None if outcome.annotations_path is None else str(outcome.annotations_path),
        "edited_images": outcome.edited,
        "reused_words": outcome.reused_words,
        "label_images": None if found is None else found.label_images,
        "edits": None if found is None or found.edits is None else asdict(found.edits),
        "embedded_models": workdir.read_plan().get("embedded_models", []),
    }
