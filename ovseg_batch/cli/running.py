"""Commands that start a run, look at it, and keep its workdir in order."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovseg_batch import datasets
from ovseg_batch.cli.base import EXIT_ERROR, EXIT_FAILED_IMAGES, EXIT_OK, guarded
from ovseg_batch.errors import UsageError
from ovseg_batch.findings import Findings, edit_note, edit_warning, label_notes, read_findings
from ovseg_batch.progress import duration
from ovseg_batch.store import Workdir

if TYPE_CHECKING:
    from ovseg_batch.pipeline import Outcome
    from ovseg_batch.planning import DryRun

EDITS = ("none", "cutout", "fill", "mask", "crop", "erase", "remove", "replace", "style")


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", "workdir", required=True, type=click.Path(path_type=Path), help="The workdir.")
@click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Settings: a YAML file, or a name from `methods`.",
)
@click.option("--labels", help='What to look for: "car, road, sky", or "person: person, people; sky".')
@click.option("--edit", type=click.Choice(EDITS), help="What to make of the images when their masks are there.")
@click.option("--keep", help="Labels that stay in edited images, as everything else is changed.")
@click.option("--drop", help="Labels that are changed in edited images.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting, as in refine.vote=0.5.")
@click.option("--device", help="auto, cpu, cuda or cuda:1.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="This machine, or a Ray cluster.")
@click.option("--workers", type=int, help="Worker processes.")
@click.option("--shards", "part", metavar="I/N", help="Only every N-th shard, from the I-th (0 ≤ I < N): job arrays.")
@click.option("--allow-remote", is_flag=True, help="Fetch images that are behind s3://, gs:// and https:// URLs.")
@click.option("--max-failure-rate", type=float, help="Stop when more than this share of the images fails.")
@click.option("--update", is_flag=True, help="List INPUT again; do what is new or changed, drop what has gone.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@guarded
def run(
    inputs: tuple[str, ...],
    workdir: Path,
    config_file: Path | None,
    labels: str | None,
    edit: str | None,
    keep: str | None,
    drop: str | None,
    overrides: tuple[str, ...],
    device: str | None,
    engine: str | None,
    workers: int | None,
    part: str | None,
    allow_remote: bool,
    max_failure_rate: float | None,
    update: bool,
    dry_run: bool,
) -> int:
    """Segment every image of INPUT into WORKDIR.

    INPUT is a folder, a glob, a .txt .csv .jsonl or .parquet list, a COCO json, or an imagefolder with metadata; with
    --allow-remote also a folder of a bucket, and lists may hold URLs.
    """
    from ovseg_batch import pipeline, planning
    from ovseg_batch.config import load_config

    config = load_config(
        config_file,
        overrides,
        {
            "labels": labels,
            "edit.mode": edit,
            "edit.keep": keep,
            "edit.drop": drop,
            "run.device": device,
            "run.engine": engine,
            "run.workers": workers,
            "run.allow_remote": allow_remote or None,
            "run.max_failure_rate": max_failure_rate,
        },
    )
    target = Workdir(workdir)
    if dry_run:
        _tell_plan(planning.dry_run(inputs, target, config))
        warnings = (f"warning: {caution}" for caution in pipeline.cautions(config))
        for line in (*warnings, *planning.competition_lines(config, listed=True)):
            click.echo(line, err=True)
        return EXIT_OK
    outcome = pipeline.run(inputs, target, config, part=_part(part), update=update)
    return _tell(outcome, target)


def _tell_plan(found: DryRun) -> None:
    """Say what a run would do and what it would take."""
    rows = found.manifest.rows
    click.echo(f"{rows} images in {found.manifest.shards} shards")
    for planned, disk in zip(found.stages, found.disk, strict=True):
        takes = ", disk by what the images show" if disk is None else f", about {disk / 1e9:.2f} GB" if disk else ""
        takes = takes if planned.missing else ""
        click.echo(f"{planned.name:8} {planned.job.store.folder.name}  {len(planned.missing)} shards to do{takes}")
    whole = sum(disk or 0 for disk in found.disk)
    click.echo(f"about {whole / 1e9:.2f} GB of {found.free / 1e9:.0f} GB that are free, tables and edits not counted")
    if whole > found.free:
        click.echo("warning: that is more than there is; dense.cache and sam.cache decide what is kept.", err=True)


def _part(text: str | None) -> tuple[int, int]:
    """(i, n) of `i/n`."""
    if text is None:
        return 0, 1
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"--shards {text!r} is not I/N with 0 ≤ I < N, as in --shards 0/8 … 7/8.")
    return int(index), int(count)


def _tell(outcome: Outcome, workdir: Workdir) -> int:
    """Say how a run ended; the exit code."""
    if outcome.annotations_path is None:
        left = sum(stage.shards - stage.shards_done for stage in outcome.stages)
        shards = "1 shard is" if left == 1 else f"{left} shards are"
        click.echo(f"This part is done. {shards} left to the others; the last one writes the outputs.")
        return EXIT_OK
    click.echo(f"{outcome.images} images, {outcome.annotations} masks: {outcome.annotations_path}")
    if outcome.edited is not None:
        click.echo(f"{outcome.edited} edited images: {workdir.edited}")
    if outcome.findings is not None:
        _tell_findings(outcome.findings)
    if outcome.failures:
        click.echo(f"{outcome.failures} images failed: {workdir.failures}")
        return EXIT_FAILED_IMAGES
    return EXIT_OK


def _tell_findings(found: Findings) -> None:
    """Print what a person should know of a finished run; a warning goes to stderr."""
    for note in (*label_notes(found.images, found.label_images), edit_note(found.edits)):
        if note is not None:
            click.echo(note)
    if warning := edit_warning(found.edits):
        click.echo(f"warning: {warning}", err=True)


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--labels", required=True, help='What to look for now: "bus, tram", or as `run` takes it.')
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The workdir of the answer.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting, as in refine.method=none.")
@guarded
def query(workdir: Path, labels: str, output: Path, overrides: tuple[str, ...]) -> int:
    """Ask a finished run for other words, without opening an image.

    The run must have kept what can be asked: dense.cache: features, and sam.cache: embeddings or SAM2's proposals
    (refine.method: automatic, or method: proposals).
    """
    from ovseg_batch import pipeline

    return _tell(pipeline.query(Workdir(workdir), Workdir(output), labels, overrides), Workdir(output))


@click.group()
def bank() -> None:
    """Let a folder's own regions help to name each other: a memory bank, without labels."""


@bank.command("build")
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bank's file, .parquet.")
@click.option("--limit", type=click.IntRange(min=1), default=200_000, show_default=True, help="Regions, about.")
@guarded
def bank_build(workdir: Path, output: Path, limit: int) -> None:
    """Collect the features of the regions that a run has found. It must have been run with dense.cache: features."""
    from ovseg_batch.export.bank import build_bank

    click.echo(f"{build_bank(Workdir(workdir), output, limit)} regions: {output}")


@bank.command("use")
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--bank", "file", required=True, type=click.Path(path_type=Path), help="What `bank build` wrote.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The workdir of the answer.")
@click.option("--labels", help="Other words than the run's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting: refine.bank_weight=0.5.")
@guarded
def bank_use(workdir: Path, file: Path, output: Path, labels: str | None, overrides: tuple[str, ...]) -> int:
    """Name every mask of a run anew, its nearest regions in the bank heard; those of its own image are not.

    With a bank of the same run this is transductive: the answer for an image depends on the others. No image is opened.
    """
    from ovseg_batch import pipeline

    chosen = (*overrides, f"refine.bank={json.dumps(str(file.absolute()))}")
    return _tell(pipeline.query(Workdir(workdir), Workdir(output), labels, chosen), Workdir(output))


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@guarded
def retry(workdir: Path) -> int:
    """Try the failed images of a run again, and no others."""
    from ovseg_batch import pipeline

    return _tell(pipeline.retry(Workdir(workdir)), Workdir(workdir))


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--repair", is_flag=True, help="Let the next run redo what is damaged.")
@guarded
def verify(workdir: Path, as_json: bool, repair: bool) -> int:
    """Read every committed byte again and say what has changed."""
    from ovseg_batch import pipeline

    problems = pipeline.verify(Workdir(workdir), repair)
    if as_json:
        lines = [{"path": str(p.path), "problem": p.what, "shard": p.shard} for p in problems]
        click.echo(json.dumps({"ok": not problems, "problems": lines}, indent=2, ensure_ascii=False))
    else:
        for problem in problems:
            click.echo(f"{problem.path}: {problem.what}")
        click.echo(f"{len(problems)} problems" if problems else "all as it was committed")
    if problems and not repair:
        click.echo("`verify --repair`, then the run's own command, redoes the damaged shards.", err=True)
    return EXIT_ERROR if problems else EXIT_OK


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Delete them; otherwise they are only named.")
@guarded
def gc(workdir: Path, yes: bool) -> None:
    """Stage folders that the latest run of a workdir does not use: name them, or delete them."""
    from ovseg_batch import pipeline

    found = pipeline.collect_garbage(Workdir(workdir), yes)
    for folder, size in found:
        click.echo(f"{folder}  {size / 1e6:.1f} MB{'  deleted' if yes else ''}")
    if not found:
        click.echo("nothing to collect")
    elif not yes:
        click.echo("`gc --yes` deletes them.", err=True)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The Parquet file to write.")
@click.option("--shard-rows", type=int, default=256, show_default=True, help="Images in a shard.")
@click.option("--allow-remote", is_flag=True, help="List s3:// and gs:// folders.")
@click.option("--dataset", type=click.Choice(datasets.NAMES), help="INPUT is this data set's folder: its val images.")
@click.option("--oracle", is_flag=True, help="With --dataset: ask every image only for the classes that are in it.")
@guarded
def manifest(
    inputs: tuple[str, ...], output: Path, shard_rows: int, allow_remote: bool, dataset: str | None, oracle: bool
) -> None:
    """Write the list of images that `run` would work through."""
    from ovseg_batch.io.manifest import build_manifest
    from ovseg_batch.io.remote import Remote

    listed: list[Any] = list(inputs)
    if dataset is not None:
        from ovseg_batch.evaluate.truth import TruthReader

        listed = [TruthReader(datasets.load(dataset), Path(folder)).source(oracle) for folder in inputs]
    elif oracle:
        raise UsageError("--oracle needs --dataset, whose truth says what is in an image.")
    summary = build_manifest(listed, output, shard_rows, Remote() if allow_remote else None)
    for note in summary.notes():
        click.echo(note, err=True)
    click.echo(f"{summary.rows} images in {summary.shards} shards: {output}")


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--watch", is_flag=True, help="Again and again, until the run is complete.")
@click.option("--every", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Seconds, with --watch.")
@guarded
def status(workdir: Path, as_json: bool, watch: bool, every: float) -> None:
    """How far a run is, from what it has committed."""
    from ovseg_batch import progress

    states = progress.watch(Workdir(workdir), every) if watch else [progress.status(Workdir(workdir))]
    for state in states:
        if as_json:
            click.echo(json.dumps(state, indent=None if watch else 2, ensure_ascii=False))
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            _tell_state(state)


def _tell_state(state: dict[str, Any]) -> None:
    click.echo(
        f"{state['images']} images in {state['shards']} shards: {'complete' if state['complete'] else 'not done'}"
    )
    for stage in state["stages"]:
        failed = ", ".join(f"{n} {code}" for code, n in stage["failed"].items()) or "none failed"
        speed = stage.get("images_per_second")
        pace = f", {speed:.1f} images/s, {duration(stage['eta_seconds'])} left" if speed else ""
        shards = f"{stage['shards_done']}/{stage['shards']} shards"
        click.echo(f"{stage['name']:8} {shards}, {stage['ok']} ok, {failed}{pace}")
    if state["annotations"]:
        click.echo(state["annotations"])
        if (found := read_findings(Workdir(Path(state["workdir"])))) is not None:
            _tell_findings(found)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("ovseg-demo"), show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=24, show_default=True, help="Scenes to render.")
@guarded
def demo(output: Path, images: int) -> int:
    """Render labelled scenes, run the whole job on them with the embedded models, and compare with the truth."""
    from ovseg_batch import demonstration

    lines = demonstration.run_demo(output, images)
    for line in lines:
        click.echo(line)
    return EXIT_OK
