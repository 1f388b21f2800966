"""Commands that start, continue, show and clean up runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ovseg_batch import datasets
from ovseg_batch.cli.base import EXIT_ERROR, EXIT_OK, bar_option, guarded, log
from ovseg_batch.cli.completion import complete_path
from ovseg_batch.cli.options import (
    SYNTAX,
    LabelsCommand,
    config_option,
    exclude_option,
    labels_option,
    names_option,
    set_option,
)
from ovseg_batch.cli.outcome import print_embedded, print_findings, print_outcome
from ovseg_batch.errors import UsageError
from ovseg_batch.settings.edit_modes import EDIT_MODES
from ovseg_batch.settings.labels import read_labels, split_names
from ovseg_batch.units import counted, extent
from ovseg_batch.workdir.findings import read_findings
from ovseg_batch.workdir.progress import duration, pace
from ovseg_batch.workdir.store import Workdir

EDITS = ("none", *EDIT_MODES)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", shell_complete=complete_path)
@click.option("-o", "--output", "workdir", required=True, type=click.Path(path_type=Path), help="Workdir of the run.")
@config_option("Settings: a YAML file, or a name from `methods`. [default: prompted]")
@labels_option(f"Labels to find: {SYNTAX}")
@click.option("--edit", type=click.Choice(EDITS), help="Edit to apply to each image once its masks exist.")
@names_option("--keep", "Labels to keep in edited images; everything else changes.")
@names_option("--drop", "Labels to change in edited images.")
@set_option("One setting, as in refine.vote=0.5.")
@exclude_option
@click.option("--device", help="auto, cpu, cuda or cuda:1.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Where to compute: this machine, or a Ray cluster.")
@click.option("--workers", type=int, help="Number of worker processes. 0 runs in this process.")
@click.option(
    "--shards", "part", metavar="I/N", help="Compute every N-th shard, from the I-th (0 ≤ I < N). For job arrays."
)
@click.option("--allow-remote", is_flag=True, help="Fetch images from s3://, gs:// and https:// URLs.")
@click.option("--max-failure-rate", type=float, help="Stop if more than this share of the images fails, from 0 to 1.")
@click.option("--update", is_flag=True, help="List INPUT again: compute new and changed images, and drop removed ones.")
@click.option("--fetch", is_flag=True, help="Download missing models first, as `models fetch` does.")
@click.option("--dry-run", is_flag=True, help="Print the plan: labels, models, stages, disk. Compute nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result, or the plan, as one JSON object.")
@guarded
def run(
    inputs: tuple[str, ...],
    workdir: Path,
    config_file: Path | None,
    labels: tuple[str, ...],
    edit: str | None,
    keep: tuple[str, ...],
    drop: tuple[str, ...],
    overrides: tuple[str, ...],
    exclude: tuple[str, ...],
    device: str | None,
    engine: str | None,
    workers: int | None,
    part: str | None,
    allow_remote: bool,
    max_failure_rate: float | None,
    update: bool,
    fetch: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Segment every image of INPUT into WORKDIR.

    INPUT is a folder, a glob, a .txt .csv .jsonl or .parquet list, a COCO json, or an imagefolder with metadata; with
    --allow-remote also a folder of a bucket, and lists may hold URLs.
    """
    from ovseg_batch.config import load_config

    config = load_config(
        config_file,
        overrides,
        {
            "labels": read_labels(labels),
            "edit.mode": edit,
            "edit.keep": split_names(keep) or None,
            "edit.drop": split_names(drop) or None,
            "manifest.exclude": exclude or None,
            "run.device": device,
            "run.engine": engine,
            "run.workers": workers,
            "run.allow_remote": allow_remote or None,
            "run.max_failure_rate": max_failure_rate,
        },
    )
    if fetch:
        from ovseg_batch.runs.needed_models import fetch_missing

        fetch_missing(config, log.info)
    # imported here, so that errors in settings appear before pyarrow is imported
    from ovseg_batch.runs import manifests, pipeline, planning

    target = Workdir(workdir)
    if dry_run:
        from ovseg_batch.cli import dry_run as plan

        found = planning.dry_run(inputs, target, config, update)
        show = plan.print_json if as_json else plan.print_plan
        show(found, config, manifests.replaced_labels(target, config))
        return EXIT_OK
    outcome = pipeline.run(inputs, target, config, bar_option(), part=_part(part), update=update)
    return print_outcome(outcome, target, as_json)


def _part(text: str | None) -> tuple[int, int]:
    """Parse `i/n` to (i, n)."""
    if text is None:
        return 0, 1
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(f"--shards {text!r} is not I/N with 0 ≤ I < N, as in --shards 0/8 … 7/8.")
    return int(index), int(count)


@click.command(cls=LabelsCommand)
@click.argument("workdir", type=click.Path(path_type=Path))
@labels_option(f"Labels to find: {SYNTAX}", required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Workdir of the new run.")
@set_option("One setting, as in refine.method=none.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@guarded
def query(workdir: Path, labels: tuple[str, ...], output: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Find other labels in the images of a finished run, without opening an image.

    The run must have stored its features: dense.cache: features, and sam.cache: embeddings or SAM2's proposals
    (refine.method: automatic, or method: proposals).
    """
    from ovseg_batch.runs import pipeline

    target, words = Workdir(output), read_labels(labels)
    return print_outcome(pipeline.query(Workdir(workdir), target, words, overrides, bar_option()), target, as_json)


@click.group()
def bank() -> None:
    """Build and use a memory bank: relabel masks by similar masks of the same folder. Needs no annotations."""


@bank.command("build")
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bank's file, .parquet.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=200_000, show_default=True, help="Approximate maximum of regions."
)
@guarded
def bank_build(workdir: Path, output: Path, limit: int) -> None:
    """Collect the features of a run's mask regions. The run must have used dense.cache: features."""
    from ovseg_batch.export.bank import build_bank

    click.echo(f"{build_bank(Workdir(workdir), output, limit)} regions: {output}")


@bank.command("use", cls=LabelsCommand)
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--bank", "file", required=True, type=click.Path(path_type=Path), help="File that `bank build` wrote.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Workdir of the new run.")
@labels_option(f"Other labels than the run's: {SYNTAX}")
@set_option("One setting: refine.bank_weight=0.5.")
@guarded
def bank_use(workdir: Path, file: Path, output: Path, labels: tuple[str, ...], overrides: tuple[str, ...]) -> int:
    """Relabel every mask by its nearest neighbours in the memory bank. Masks of the same image are excluded.

    With a bank of the same run, the result for an image depends on the other images (transductive). No image is opened.
    """
    from ovseg_batch.runs import pipeline

    chosen = (*overrides, f"refine.bank={json.dumps(str(file.absolute()))}")
    target, words = Workdir(output), read_labels(labels)
    return print_outcome(pipeline.query(Workdir(workdir), target, words, chosen, bar_option()), target)


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@guarded
def retry(workdir: Path) -> int:
    """Compute only the failed images of a run again."""
    from ovseg_batch.runs import pipeline

    return print_outcome(pipeline.retry(Workdir(workdir), bar_option()), Workdir(workdir))


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--repair", is_flag=True, help="Make the next run compute damaged shards and write the outputs again.")
@guarded
def verify(workdir: Path, as_json: bool, repair: bool) -> int:
    """Read all committed files again and report changes."""
    from ovseg_batch.runs import upkeep

    problems = upkeep.verify(Workdir(workdir), repair)
    if as_json:
        lines = [{"path": str(p.path), "problem": p.what, "shard": p.shard} for p in problems]
        click.echo(json.dumps({"ok": not problems, "problems": lines}, indent=2, ensure_ascii=False))
    else:
        for problem in problems:
            click.echo(f"{problem.path}: {problem.what}")
        click.echo(counted(len(problems), "problem") if problems else "no committed file has changed")
    if problems and not repair:
        log.info("To compute damaged shards again, run `verify --repair`, then the run's command.")
    return EXIT_ERROR if problems else EXIT_OK


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Delete the folders. Without it, they are only listed.")
@guarded
def gc(workdir: Path, yes: bool) -> None:
    """List or delete stage folders that the latest run of a workdir does not use."""
    from ovseg_batch.runs import upkeep

    found = upkeep.collect_garbage(Workdir(workdir), yes)
    for folder, size in found:
        click.echo(f"{folder}  {size / 1e6:.1f} MB{'  deleted' if yes else ''}")
    if not found:
        click.echo("no unused stage folders")
    elif not yes:
        log.info("`gc --yes` deletes them.")


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Parquet file to write.")
@exclude_option
@click.option("--shard-rows", type=int, default=256, show_default=True, help="Number of images per shard.")
@click.option("--allow-remote", is_flag=True, help="List s3:// and gs:// folders.")
@click.option(
    "--dataset", type=str, metavar="NAME|FILE", help="INPUT is the folder of this data set; list its val images."
)
@click.option(
    "--oracle", is_flag=True, help="With --dataset: limit the labels of every image to the classes in its ground truth."
)
@guarded
def manifest(
    inputs: tuple[str, ...],
    output: Path,
    exclude: tuple[str, ...],
    shard_rows: int,
    allow_remote: bool,
    dataset: str | None,
    oracle: bool,
) -> None:
    """Write the list of images that `run` would process."""
    from ovseg_batch.io.manifest import Manifest, build_manifest
    from ovseg_batch.io.marks import check_replaceable
    from ovseg_batch.io.remote import Remote

    check_replaceable(output, Manifest.recognises)
    listed: list[Any] = list(inputs)
    if dataset is not None:
        from ovseg_batch.evaluate.truth.datasets import TruthReader

        listed = [TruthReader(datasets.load(dataset), Path(folder)).source(oracle) for folder in inputs]
    elif oracle:
        raise UsageError("--oracle needs --dataset, whose ground truth names the classes of an image.")
    summary = build_manifest(listed, output, shard_rows, Remote() if allow_remote else None, exclude)
    for note in summary.notes():
        log.warning("%s", note)
    click.echo(f"{extent(summary.rows, summary.shards)}: {output}")


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Print repeatedly until the run is complete.")
@click.option(
    "--every", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Interval of --watch in seconds."
)
@guarded
def status(workdir: Path, as_json: bool, watch: bool, every: float) -> None:
    """Print the progress of a run, according to its commits."""
    from ovseg_batch.workdir import progress

    states = progress.watch(Workdir(workdir), every) if watch else [progress.status(Workdir(workdir))]
    for state in states:
        if as_json:
            click.echo(json.dumps(state, indent=None if watch else 2, ensure_ascii=False))
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            _print_state(state)


def _print_state(state: dict[str, Any]) -> None:
    click.echo(f"{extent(state['images'], state['shards'])}: {'complete' if state['complete'] else 'not done'}")
    for stage in state["stages"]:
        failed = ", ".join(f"{n} {code}" for code, n in stage["failed"].items()) or "none failed"
        speed = stage.get("images_per_second")
        rate = f", {pace(speed)} images/s, {duration(stage['eta_seconds'])} left" if speed else ""
        shards = f"{stage['shards_done']}/{stage['shards']} shards"
        click.echo(f"{stage['name']:8} {shards}, {stage['ok']} ok, {failed}{rate}")
    if state["annotations"]:
        click.echo(state["annotations"])
        if (found := read_findings(Workdir(Path(state["workdir"])))) is not None:
            print_findings(found)
    print_embedded(state)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("ovseg-demo"), show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=24, show_default=True, help="Number of scenes to render.")
@guarded
def demo(output: Path, images: int) -> int:
    """Render scenes, segment them with the embedded models, and evaluate the masks against the ground truth."""
    from ovseg_batch.runs import demo

    lines = demo.run_demo(output, images, bar_option())
    for line in lines:
        click.echo(line)
    return EXIT_OK
