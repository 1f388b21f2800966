"""Commands that use a finished run: exports, reports and evaluation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovseg_batch import datasets
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
    from ovseg_batch.workdir.results import Results

    thresholds = read_thresholds(options["thresholds"]) if options["thresholds"] else {}
    if options["share"] is not None:
        thresholds = keep_share(Results.open(Workdir(workdir)), options["share"]) | thresholds
    selection = Selection(
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
@guarded
def report(workdir: Path, output: Path | None, limit: int, workers: int | None) -> int:
    """Write a page about the run in WORKDIR: numbers, charts, failures, and the images with their masks.

    The page is a folder of static files that a browser opens from the disk. The same command updates it.
    """
    from ovseg_batch.report.build import build_report

    with bar("report") as shown:
        done = build_report(Workdir(workdir), output or workdir / REPORT, limit, workers, shown.update)
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


@click.command("eval")
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--dataset", type=str, metavar="NAME|FILE", required=True, help="The data set.")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="The data set's folder, or one above it.")
@click.option("--classes", "by_class", is_flag=True, help="Also print the figures of each class.")
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG to write: the images with the lowest scores.")
@click.option(
    "--precision",
    type=click.FloatRange(0, 1),
    help="Target precision when fitting --thresholds: share of kept pixels that are correct.",
)
@click.option("--thresholds", type=click.Path(path_type=Path), help="A file to write, for `export -f semantic`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every class.")
@guarded
def eval_run(
    workdir: Path,
    dataset: str,
    root: Path,
    by_class: bool,
    sheet: Path | None,
    precision: float | None,
    thresholds: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a finished run against a data set's ground truth. A shard that has not changed is scored only once.

    The run must be over the data set's images, as `manifest --dataset` lists them, with the data set's classes.
    """
    from ovseg_batch.evaluate.edits import edit_figures
    from ovseg_batch.evaluate.run import evaluate, vocabulary_of
    from ovseg_batch.evaluate.sheet import is_sheet
    from ovseg_batch.export.thresholds import are_thresholds, write_thresholds
    from ovseg_batch.io.marks import check_replaceable

    if (thresholds is None) != (precision is None):
        raise UsageError("--precision and --thresholds need each other: the target precision, and the file to write.")
    for file, is_ours in ((sheet, is_sheet), (thresholds, are_thresholds)):
        if file is not None:
            check_replaceable(file, is_ours)
    score = evaluate(Workdir(workdir), datasets.load(dataset), root, sheet)
    if thresholds is not None and precision is not None:
        write_thresholds(thresholds, score.thresholds(precision))
    found, vocabulary = score.figures(), vocabulary_of(Workdir(workdir))
    edits = edit_figures(Workdir(workdir), root)
    if as_json:
        named = {"dataset": dataset, "vocabulary": vocabulary, **found, "edits": edits, "classes": score.classes()}
        click.echo(json.dumps(_plain(named), indent=2))
        return
    _print_figures(vocabulary, found, edits)
    if by_class:
        for name, values in score.classes().items():
            click.echo(f"{name:24} " + "  ".join(f"{kind} {_figure(kind, value)}" for kind, value in values.items()))


def _print_figures(vocabulary: str, found: Mapping[str, float], edits: Mapping[str, float]) -> None:
    click.echo(f"{'vocabulary':16} {vocabulary}")
    for name, value in found.items():
        click.echo(f"{name:16} {_figure(name, value)}")
    for name, value in edits.items():
        click.echo(f"edits: {name:32} {value:.4g}")


def _figure(name: str, value: float) -> str:
    """Return a figure as it is usually published: IoU and accuracy in per cent, other scores as shares of 1."""
    if name == "images":
        return str(value)
    return f"{value:.2%}" if "IoU" in name or "accuracy" in name else f"{value:.3f}"


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN by None."""
    return {
        key: _plain(value) if isinstance(value, dict) else None if value != value else value
        for key, value in tree.items()
    }
