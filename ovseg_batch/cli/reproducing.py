"""The command that reproduces published figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovseg_batch.cli.base import EXIT_FAILED_IMAGES, EXIT_OK, bar_option, guarded, log
from ovseg_batch.cli.options import set_option
from ovseg_batch.errors import UsageError
from ovseg_batch.units import counted
from ovseg_batch.workdir.store import Workdir

if TYPE_CHECKING:
    from ovseg_batch.runs.reproduce import Reproduced


@click.command()
@click.argument("name", metavar="[ROW]", required=False)
@click.option("--root", type=click.Path(path_type=Path), help="The data set's folder, or one above it.")
@click.option("-o", "--output", "workdir", type=click.Path(path_type=Path), help="Workdir of the run. [default: ROW]")
@set_option("One setting that differs from the protocol.")
@click.option("--device", help="auto, cpu, cuda or cuda:1.")
@click.option("--workers", type=int, help="Number of worker processes. 0 runs in this process.")
@click.option("--fetch", is_flag=True, help="Download missing models first, as `models fetch` does.")
@click.option("--list", "list_rows", is_flag=True, help="List the rows with source, needed weights and their licences.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@guarded
def reproduce(
    name: str | None,
    root: Path | None,
    workdir: Path | None,
    overrides: tuple[str, ...],
    device: str | None,
    workers: int | None,
    fetch: bool,
    list_rows: bool,
    as_json: bool,
) -> int:
    """Reproduce a published figure: run a method on a data set with its protocol, and evaluate the run.

    ROW is a name of `reproduce --list`, such as sclip-voc21. The command resumes when it is given again.
    """
    if list_rows:
        _list_rows(as_json)
        return EXIT_OK
    if name is None or root is None:
        raise UsageError("Give a row of `reproduce --list`, and --root, the folder of its data set.")
    from ovseg_batch.runs import reproduce as runs

    row = runs.find_row(name)
    config = runs.config_of(row, overrides, {"run.device": device, "run.workers": workers})
    if fetch:
        from ovseg_batch.runs.needed_models import fetch_missing

        fetch_missing(config, log.info)
    target = Workdir(workdir if workdir is not None else Path(row.name))
    found = runs.reproduce(row, root, target, config, overrides, bar_option())
    if as_json:
        click.echo(json.dumps(_record(found, target), indent=2, ensure_ascii=False))
    else:
        _print(found, target)
    return EXIT_FAILED_IMAGES if found.outcome.failures else EXIT_OK


def _list_rows(as_json: bool) -> None:
    from ovseg_batch import datasets
    from ovseg_batch.config import load_config
    from ovseg_batch.datasets import protocols
    from ovseg_batch.runs.needed_models import needed_models

    listed: list[dict[str, Any]] = []
    for row in protocols.rows():
        protocol = protocols.load(row.method)
        given = {key: name for key, name in row.files.items() if key != "definitions"}
        needed = needed_models(load_config(protocol.preset, flags=given, environment={}))
        weights = [{"name": one.model, "licence": one.licence} for one in needed]
        entry = {
            "name": row.name,
            "mIoU": row.published,
            "weights": weights,
            "dataset": datasets.load(row.dataset).title,
        }
        listed.append({**entry, "source": protocol.source, "files": dict(row.files)})
    if as_json:
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    table = [("row", "mIoU", "weights", "their licence", "data set")]
    table += [(one["name"], _percent(one["mIoU"]), *_cells(one["weights"]), one["dataset"]) for one in listed]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    head, *lines = ["  ".join(map(_padded, line, widths, range(len(line)))).rstrip() for line in table]
    source = ""
    for one, line in zip(listed, lines, strict=True):
        if one["source"] != source:
            click.echo(f"{chr(10) if source else ''}{one['source']}\n  {head}")
            source = one["source"]
        files = "".join(f"; {key}={name}" for key, name in one["files"].items())
        click.echo(f"  {line}{files}")


def _cells(weights: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """Return the names of weights and their licences as texts. A licence that all have in common is given once."""
    names, licences = [one["name"] for one in weights], [one["licence"] for one in weights]
    return ", ".join(names), licences[0] if len(set(licences)) == 1 else ", ".join(licences)


def _padded(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column == 1 else text.ljust(width)


def _print(found: Reproduced, workdir: Workdir) -> None:
    click.echo(f"{found.row.name}: mIoU measured {found.measured:.2f}, published {_percent(found.row.published)}")
    if found.difference is not None:
        click.echo(f"difference {found.difference:+.2f}")
    click.echo(f"{counted(found.scored, 'image')} scored; {found.model} in {found.precision}; run: {workdir.root}")
    if found.changed:
        click.echo(f"not the protocol: {', '.join(found.changed)}")
    if found.precision != "fp16":
        click.echo("The published figures were computed in fp16.")
    if found.outcome.failures:
        click.echo(f"{counted(found.outcome.failures, 'image')} failed and are not scored: {workdir.failures}")


def _percent(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "none"


def _record(found: Reproduced, workdir: Workdir) -> dict[str, object]:
    return {
        "name": found.row.name,
        "measured": found.measured,
        "published": found.row.published,
        "difference": found.difference,
        "precision": found.precision,
        "images": found.scored,
        "failures": found.outcome.failures,
        "changed": list(found.changed),
        "workdir": str(workdir.root),
    }
