"""The command that compares two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovseg_batch import datasets
from ovseg_batch.cli.base import bar, guarded
from ovseg_batch.cli.evaluating import check_truth, plain
from ovseg_batch.units import counted
from ovseg_batch.workdir.findings import printable
from ovseg_batch.workdir.store import Workdir

if TYPE_CHECKING:
    from ovseg_batch.evaluate.comparison.compare import Comparison
    from ovseg_batch.evaluate.comparison.difference import TruthDifference

LISTED = 10  # rows of each list in the text


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folder of the page to write.")
@click.option("--dataset", type=str, metavar="NAME|FILE", help="Data set with ground truth. It needs --root.")
@click.option("--root", type=click.Path(path_type=Path), help="The data set's folder, or one above it.")
@click.option("--truth", type=click.Path(path_type=Path), help="Ground truth of your own, as `eval --truth` reads it.")
@click.option("--truth-classes", type=click.Path(path_type=Path), help="The classes of a folder of maps, one a line.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=24, show_default=True, help="Number of images to list and to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@guarded
def compare(
    a: Path,
    b: Path,
    output: Path | None,
    dataset: str | None,
    root: Path | None,
    truth: Path | None,
    truth_classes: Path | None,
    limit: int,
    as_json: bool,
) -> None:
    """Compare the runs of two workdirs over the same images: settings, labels, masks, pixels.

    Images are matched by their keys, and then by their file names. With ground truth, the difference of every label has
    a 95 % interval. -o writes a page with the images that differ most, side by side.
    """
    from ovseg_batch.evaluate.comparison.compare import compare_runs
    from ovseg_batch.evaluate.comparison.difference import truth_difference
    from ovseg_batch.evaluate.comparison.record import record, verdicts
    from ovseg_batch.report.comparison import check_destination, write_comparison

    if any(given is not None for given in (dataset, root, truth, truth_classes)):
        check_truth(dataset, root, truth, truth_classes)
    if output is not None:
        check_destination(output)
    runs = Workdir(a), Workdir(b)
    with bar("compare") as shown:
        found = compare_runs(*runs, limit, shown.update)
    against = None
    if dataset is not None or truth is not None:
        loaded = None if dataset is None else datasets.load(dataset)
        against = truth_difference(*runs, truth, truth_classes, loaded, root)
    page = None if output is None else write_comparison(*runs, found, against, output)
    if as_json:
        paths = {"A": str(a), "B": str(b), "page": None if page is None else str(page)}
        click.echo(json.dumps(plain({**paths, **record(found, against)}), indent=2, ensure_ascii=False))
        return
    _print(found, against, a, b)
    click.echo("\n" + "\n".join(verdicts(found, against)))
    if page is not None:
        click.echo(f"page: {page}")


def _print(found: Comparison, truth: TruthDifference | None, a: Path, b: Path) -> None:
    """Print the numbers, and the largest entries of each list."""
    from ovseg_batch.evaluate.comparison.record import comparison_notes, shown_value

    masks = [sum(one.masks[side] for one in found.by_label.values()) for side in (0, 1)]
    for letter, path, count in zip("AB", (a, b), masks, strict=True):
        click.echo(f"{letter}  {path}: {counted(count, 'mask')}")
    click.echo(f"{counted(found.images, 'image')} compared, {found.equal} of them with equal masks")
    for note in comparison_notes(found):
        click.echo(printable_line(note))
    if found.settings:
        click.echo("\nsettings that differ")
        for key, (one, other) in list(found.settings.items())[:LISTED]:
            click.echo(printable_line(f"  {key}: {shown_value(one)} → {shown_value(other)}"))
        _more(len(found.settings), "settings")
    _print_labels(found, truth)
    if found.moved:
        click.echo("\nmasks at the same place with another label, A → B")
        for (one, other), count in found.moved.most_common(LISTED):
            click.echo(f"  {printable(one)} → {printable(other)}: {count}")
        _more(len(found.moved), "pairs of labels")
    if found.most:
        click.echo("\nimages that differ most: pixels with another label, masks without a partner")
        for change in found.most[:LISTED]:
            click.echo(f"  {change.share:6.1%} {change.unmatched:4}  {printable_line(change.file_name)}")


def _print_labels(found: Comparison, truth: TruthDifference | None) -> None:
    used = {name: one for name, one in found.by_label.items() if any(one.masks)}
    title = "" if truth is None else "  B − A, IoU on the truth"
    click.echo(f"\n{'label':24} {'masks':>13} {'in both':>8} {'IoU':>6} {'only A':>7} {'only B':>7}{title}")
    for name, one in used.items():
        iou = "" if one.iou is None else f"{one.iou:.3f}"
        line = f"{printable(name):24} {one.masks[0]:>6} {one.masks[1]:>6} {one.matched:>8} {iou:>6} "
        line += f"{one.only[0]:>7} {one.only[1]:>7}"
        difference = None if truth is None else truth.classes.get(name)
        if difference is not None and difference.change == difference.change:
            low, high = (100 * limit for limit in difference.limits)
            line += f"  {100 * difference.change:+.1f} points ({low:+.1f} to {high:+.1f})"
        click.echo(line)


def _more(count: int, what: str) -> None:
    if count > LISTED:
        click.echo(f"  and {count - LISTED} more {what}; --json and -o list all")


def printable_line(text: str) -> str:
    """Return a text without characters that control a terminal."""
    from ovseg_batch.errors import escaped

    return escaped(text)
