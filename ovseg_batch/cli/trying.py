"""The command `try`: a few images before a run over all."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovseg_batch.cli.base import EXIT_FAILED_IMAGES, EXIT_OK, bar_option, guarded, log
from ovseg_batch.cli.completion import complete_path
from ovseg_batch.cli.options import SYNTAX, config_option, exclude_option, labels_option, names_option, set_option
from ovseg_batch.cli.outputs import REPORT
from ovseg_batch.errors import UsageError
from ovseg_batch.settings.edit_modes import EDIT_MODES
from ovseg_batch.settings.labels import read_labels, split_names
from ovseg_batch.units import counted, size
from ovseg_batch.workdir.findings import found_note
from ovseg_batch.workdir.store import Workdir

if TYPE_CHECKING:
    from ovseg_batch.report.foreword import Foreword
    from ovseg_batch.runs.trying.trial import Tried

SHEET_IMAGES = 24  # most images on a sheet


@click.command("try")
@click.argument("inputs", nargs=-1, metavar="INPUT...", shell_complete=complete_path)
@click.option("-o", "--output", "workdir", required=True, type=click.Path(path_type=Path), help="Folder of the trial.")
@click.option(
    "--for", "source", type=click.Path(path_type=Path), help="Sample the images of this workdir, with its settings."
)
@click.option(
    "-n", "count", type=click.IntRange(min=1), default=24, show_default=True, help="Number of images to draw."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which images are drawn.")
@config_option("Settings: a YAML file, or a name from `methods`. [default: prompted]")
@labels_option(f"Labels to find: {SYNTAX}")
@click.option(
    "--edit", type=click.Choice(("none", *EDIT_MODES)), help="Edit to apply to each image once its masks exist."
)
@names_option("--keep", "Labels to keep in edited images; everything else changes.")
@names_option("--drop", "Labels to change in edited images.")
@set_option("One setting, as in refine.vote=0.5.")
@exclude_option
@click.option("--device", help="auto, cpu, cuda or cuda:1.")
@click.option("--workers", type=int, help="Number of worker processes of the run. 0 runs in this process.")
@click.option("--allow-remote", is_flag=True, help="Fetch images from s3://, gs:// and https:// URLs.")
@click.option("--fetch", is_flag=True, help="Download missing models first, as `models fetch` does.")
@click.option("--price", type=click.FloatRange(min=0), help="Price of this machine per hour, in dollars.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write one PNG with the images and their masks.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@guarded
def try_images(
    inputs: tuple[str, ...],
    workdir: Path,
    source: Path | None,
    count: int,
    seed: int,
    config_file: Path | None,
    labels: tuple[str, ...],
    overrides: tuple[str, ...],
    price: float | None,
    sheet: Path | None,
    fetch: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Segment a few images of INPUT, drawn at random, and forecast the time and the disk of the whole run.

    The same folder takes other labels and settings: only what they decide is computed again. The page shows the images.
    The last line is the command of the run.
    """
    from ovseg_batch.config import load_config

    if bool(inputs) == (source is not None):
        raise UsageError("Give INPUT, or a workdir with --for.")
    flags = {
        "labels": read_labels(labels),
        "edit.mode": options["edit"],
        "edit.keep": split_names(options["keep"]) or None,
        "edit.drop": split_names(options["drop"]) or None,
        "manifest.exclude": options["exclude"] or None,
        "run.device": options["device"],
        "run.workers": options["workers"],
        "run.allow_remote": options["allow_remote"] or None,
    }
    of = None if source is None else Workdir(source)
    if of is not None:
        inputs = tuple(of.read_plan()["inputs"])
        config_file = config_file or of.config
    config = load_config(config_file, overrides, flags)
    if fetch:
        from ovseg_batch.runs.needed_models import fetch_missing

        fetch_missing(config, log.info)
    from ovseg_batch.io.marks import check_replaceable
    from ovseg_batch.report.build import build_report
    from ovseg_batch.report.contact_sheet import is_contact_sheet, write_contact_sheet
    from ovseg_batch.runs.trying.trial import try_images
    from ovseg_batch.stages.base import read_limits
    from ovseg_batch.workdir.results import Results

    if sheet is not None:
        check_replaceable(sheet, is_contact_sheet)
    target = Workdir(workdir)
    tried = try_images(inputs, target, config, count, seed, of, bar_option())
    command = _command(inputs, workdir, source, config_file, labels, overrides, options)
    foreword = _foreword(tried, price, command)
    page = build_report(target, workdir / REPORT, foreword=foreword.html(), workers=0).page
    if sheet is not None:
        write_contact_sheet(Results.open(target), sheet, SHEET_IMAGES, read_limits(config.run))
    if as_json:
        click.echo(json.dumps(_record(tried, price, command, page, sheet), indent=2, ensure_ascii=False))
    else:
        _print(tried, foreword, page, sheet)
    return EXIT_FAILED_IMAGES if tried.outcome.failures else EXIT_OK


def _command(
    inputs: Sequence[str],
    workdir: Path,
    source: Path | None,
    config_file: Path | None,
    labels: Sequence[str],
    overrides: Sequence[str],
    options: dict[str, Any],
) -> str:
    """Return the command of the run over the whole list, quoted for a shell."""
    beside = workdir if workdir.name not in ("", "..") else workdir.resolve()
    output = source or beside.with_name(f"{beside.name}-run")
    parts = ["ovseg-batch", "run", *inputs, "-o", str(output)]
    if config_file is not None:
        parts += ["-c", str(config_file)]
    for text in labels:
        parts += ["--labels", text]
    for name in ("edit", "device", "workers"):
        if options[name] is not None:
            parts += [f"--{name}", str(options[name])]
    for name in ("keep", "drop", "exclude"):
        for text in options[name]:
            parts += [f"--{name}", text]
    for text in overrides:
        parts += ["--set", text]
    if options["allow_remote"]:
        parts.append("--allow-remote")
    return shlex.join(parts)


def _sentence(tried: Tried, price: float | None) -> str:
    """Return the forecast in one sentence."""
    from ovseg_batch.runs.trying.forecast import rounded

    expected = tried.forecast
    interval = "" if expected.low is None else f" ({rounded(expected.low)} to {rounded(expected.high or 0.0)})"
    disk = f"{size(tried.disk.total)} of {size(tried.disk.free)} free"
    cost = "" if price is None else f", {price * expected.seconds / 3600:,.2f} $"
    return f"{tried.images:,} images: {rounded(expected.seconds)}{interval} on this machine{cost}; {disk}"


def _foreword(tried: Tried, price: float | None, command: str) -> Foreword:
    from ovseg_batch.report.foreword import Foreword, StageLine
    from ovseg_batch.runs.trying.forecast import per_second

    lines = [
        StageLine(one.name, f"{one.start:.1f}", f"{one.per_image:.3g}", per_second(one), f"{one.share:.0%}")
        for one in tried.forecast.stages
    ]
    sample = f"Measured with {counted(tried.sampled, 'image')} that were drawn at random."
    if tried.forecast.low is None:
        sample += " They are too few for an interval."
    warnings = [(f"{one.text.rstrip('.')}.", one.action) for one in tried.advice]
    return Foreword("Forecast", (_sentence(tried, price), sample), lines, warnings, command)


def _print(tried: Tried, foreword: Foreword, page: Path, sheet: Path | None) -> None:
    for sentence in foreword.sentences:
        click.echo(sentence)
    width = max(len("stage"), *(len(one.name) for one in foreword.stages))
    click.echo(f"{'stage':{width}}  start in s  s an image  images/s  share")
    for one in foreword.stages:
        click.echo(
            f"{one.name:{width}}  {one.start:>10}  {one.per_image:>10}  {one.images_per_second:>8}  {one.share:>5}"
        )
    findings = tried.outcome.findings
    if findings is not None and (note := found_note(findings.label_images)):
        click.echo(note)
    for text, action in foreword.warnings:
        click.echo(f"warning: {text} {action}")
    if sheet is not None:
        click.echo(f"sheet: {sheet}")
    click.echo(f"page: {page}")
    click.echo(f"start the run: {foreword.command}")


def _record(tried: Tried, price: float | None, command: str, page: Path, sheet: Path | None) -> dict[str, Any]:
    """Return the result as plain values, for JSON."""
    expected, findings = tried.forecast, tried.outcome.findings
    return {
        "images": tried.images,
        "sampled": tried.sampled,
        "masks": tried.outcome.annotations,
        "failures": tried.outcome.failures,
        "computed_shards": {name: len(shards) for name, shards in tried.outcome.redone.items()},
        "seconds": expected.seconds,
        "seconds_low": expected.low,
        "seconds_high": expected.high,
        "cost": None if price is None else price * expected.seconds / 3600,
        "disk_bytes": tried.disk.total,
        "disk": tried.disk.kinds,
        "free_bytes": tried.disk.free,
        "stages": [asdict(stage) for stage in expected.stages],
        "label_images": None if findings is None else findings.label_images,
        "warnings": [asdict(one) for one in tried.advice],
        "page": str(page),
        "sheet": None if sheet is None else str(sheet),
        "command": command,
    }
