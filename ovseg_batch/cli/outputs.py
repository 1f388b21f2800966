"""Commands that write a finished run in other forms: exports and reports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovseg_batch.cli.base import EXIT_OK, bar, guarded, log
from ovseg_batch.cli.options import LabelsCommand, names_option
from ovseg_batch.errors import UsageError
from ovseg_batch.export import FORMATS
from ovseg_batch.settings.labels import split_names
from ovseg_batch.units import counted
from ovseg_batch.workdir.findings import label_notes, read_findings
from ovseg_batch.workdir.store import Workdir

if TYPE_CHECKING:
    from ovseg_batch.export.exporting import Exported

REPORT = "report"  # folder of the report in a workdir


@click.command(cls=LabelsCommand)
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("-f", "--format", "kind", type=click.Choice(FORMATS), required=True, help="Format to write.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File or folder to write.")
@names_option("--labels", "Only masks of these labels.")
@click.option("--min-score", type=click.FloatRange(0, 1), default=0.0, help="Only masks of at least this confidence.")
@click.option("--min-area", type=click.IntRange(min=0), default=0, help="Only masks of at least this many pixels.")
@click.option(
    "--val",
    "val_share",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Share of the images in the split val, from 0 to 1.",
)
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Only images of this split.")
@click.option(
    "--images",
    type=click.Choice(["link", "copy", "none"]),
    default="link",
    help="How image files are added to exports.",
)
@click.option("--palette", type=click.Choice(["none", "voc"]), default="none", help="Colours of semantic PNGs.")
@click.option(
    "--ignore-below",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="semantic: pixels of masks below this confidence become 255.",
)
@click.option(
    "--keep",
    "share",
    type=click.FloatRange(0, 1, min_open=True),
    help="semantic: keep this share of each label's pixels, the most certain; the others become 255.",
)
@click.option(
    "--thresholds", type=click.Path(path_type=Path), help="semantic: file with the least confidence of each label."
)
@click.option(
    "--decisions",
    type=click.Path(path_type=Path),
    help="File of decisions that the report saved. Masks and images judged wrong are left out.",
)
@click.option(
    "--only-right", is_flag=True, help="With --decisions: only masks judged right, or in images judged right."
)
@names_option("--stuff", "panoptic: labels that make one segment per image.")
@click.option(
    "--tolerance", type=click.FloatRange(min=0), default=0.0, help="Tolerance of polygon simplification in pixels."
)
@click.option(
    "--image-url", default="/data/local-files/?d=", show_default=True, help="label-studio: prefix of the path."
)
@click.option("--workers", type=click.IntRange(min=0), help="Number of worker processes. 0 runs in this process.")
@click.option(
    "--overwrite", is_flag=True, help="Replace a file that is not an export, or a folder with another export."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@guarded
def export(
    workdir: Path, kind: str, output: Path, workers: int | None, overwrite: bool, as_json: bool, **options: Any
) -> int:
    """Export the finished masks to another tool's format. If interrupted, the same command resumes.

    An earlier export of the same format is replaced. Any other file is replaced only with --overwrite.
    """
    from ovseg_batch.export import exporting, formats
    from ovseg_batch.export.selection import Selection
    from ovseg_batch.export.thresholds import keep_share, read_thresholds
    from ovseg_batch.workdir.decisions import read_decisions
    from ovseg_batch.workdir.results import Results

    thresholds = read_thresholds(options["thresholds"]) if options["thresholds"] else {}
    if options["share"] is not None:
        thresholds = keep_share(Results.open(Workdir(workdir)), options["share"]) | thresholds
    decisions = None if options["decisions"] is None else read_decisions(options["decisions"])
    if options["only_right"]:
        if decisions is None:
            raise UsageError("--only-right needs --decisions, the file that the report saved.")
        decisions = decisions.strictly()
    selection = Selection(
        decisions=decisions,
        labels=split_names(options["labels"]),
        min_score=options["min_score"],
        min_area=options["min_area"],
        split=options["split"],
        val_share=options["val_share"],
    )
    chosen = exporting.Options(
        images=options["images"],
        palette=options["palette"],
        ignore_below=options["ignore_below"],
        thresholds=thresholds,
        stuff=split_names(options["stuff"]),
        tolerance=options["tolerance"],
        image_url=options["image_url"],
    )
    with bar(kind) as shown:
        done = exporting.export(
            Workdir(workdir), formats.WRITERS[kind], output, selection, chosen, workers, shown.update, overwrite
        )
    if as_json:
        click.echo(json.dumps(_record(done), indent=2, ensure_ascii=False))
        return EXIT_OK
    _print_export(done, kind, Workdir(workdir), selection.labels)
    return EXIT_OK


@click.command()
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folder to write. [default: WORKDIR/report]")
@click.option(
    "--limit", type=click.IntRange(min=1), default=10_000, show_default=True, help="Number of images in the gallery."
)
@click.option("--workers", type=click.IntRange(min=0), help="Number of worker processes. 0 runs in this process.")
@click.option(
    "--portable",
    is_flag=True,
    help="Add pictures of up to 2,048 pixels of all images, so that the folder can be copied to another machine.",
)
@click.option(
    "--decisions",
    type=click.Path(path_type=Path),
    help="File of decisions that the page begins with, as it saved them.",
)
@guarded
def report(
    workdir: Path, output: Path | None, limit: int, workers: int | None, portable: bool, decisions: Path | None
) -> int:
    """Write a page about the run in WORKDIR: the images with their masks, numbers, charts and failures.

    The page is a folder of static files that a browser opens from the disk. The same command updates it. On the page,
    masks and images can be judged right, wrong or unsure, and the decisions saved for `export --decisions`.
    """
    from ovseg_batch.report.build import build_report
    from ovseg_batch.workdir.decisions import read_decisions
    from ovseg_batch.workdir.results import Results

    given = None if decisions is None else read_decisions(decisions)
    if given is not None:
        given.check(Results.open(Workdir(workdir)))
    with bar("report") as shown:
        done = build_report(
            Workdir(workdir),
            output or workdir / REPORT,
            limit,
            workers,
            shown.update,
            portable=portable,
            decisions=given,
        )
    click.echo(f"{counted(done.images, 'image')}, {done.shown} of them shown: {done.page}")
    return EXIT_OK


def _record(done: Exported) -> dict[str, Any]:
    """Return the result of an export as plain values, for JSON."""
    return {
        "images": done.tally["images"],
        "masks": done.tally["masks"],
        "paths": [str(path) for path in done.paths],
        "complete": done.complete,
        "shards": done.shards,
        "of_shards": done.of_shards,
    }


def _print_export(done: Exported, kind: str, workdir: Workdir, labels: Sequence[str]) -> None:
    """Print the numbers of an export, and what the run found of the exported labels (empty: all)."""
    images, masks = counted(done.tally["images"], "image"), counted(done.tally["masks"], "mask")
    click.echo(f"{images}, {masks}: {', '.join(map(str, done.paths[:3]))}")
    if kind == "semantic":
        _print_balance(done.tally)
    found = read_findings(workdir) if done.complete else None
    if found is not None:
        for note in label_notes(found.images, found.label_images, labels or None):
            click.echo(f"in the run, {note}")
    if not done.complete:
        left = done.of_shards - done.shards
        log.warning("The run is not finished: %d of %d shards are missing in the export.", left, done.of_shards)


def _print_balance(tally: Counter[str]) -> None:
    """Print the share of labelled pixels per label, and the share that is kept."""
    kept = {key.removeprefix("kept "): count for key, count in tally.items() if key.startswith("kept ")}
    left = {key.removeprefix("ignored "): count for key, count in tally.items() if key.startswith("ignored ")}
    total = max(sum(kept.values()), 1)
    click.echo(f"{sum(kept.values()) / tally['pixels']:.1%} of all pixels are labelled")
    for label in sorted({*kept, *left}, key=lambda label: -kept.get(label, 0)):
        own = kept.get(label, 0) + left.get(label, 0)
        click.echo(f"  {label:24} {kept.get(label, 0) / total:6.1%} of these; {kept.get(label, 0) / own:6.1%} kept")
