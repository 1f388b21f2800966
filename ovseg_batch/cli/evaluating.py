"""Commands that evaluate a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovseg_batch import datasets
from ovseg_batch.cli.base import guarded
from ovseg_batch.errors import UsageError
from ovseg_batch.workdir.store import Workdir

if TYPE_CHECKING:
    from ovseg_batch.evaluate.score import Score

WHICH_TRUTH = "Give either --dataset NAME with --root DIR, or --truth with a COCO file or a folder of class maps."


@click.command("eval")
@click.argument("workdir", type=click.Path(path_type=Path))
@click.option("--dataset", type=str, metavar="NAME|FILE", help="The data set. It needs --root.")
@click.option("--root", type=click.Path(path_type=Path), help="The data set's folder, or one above it.")
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    help="Ground truth of your own: a COCO file (instances or panoptic), or a folder of class maps (PNG).",
)
@click.option(
    "--truth-classes",
    type=click.Path(path_type=Path),
    help="The classes of a folder of maps, one a line. [default: classes.txt or classes.json in the folder]",
)
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
    dataset: str | None,
    root: Path | None,
    truth: Path | None,
    truth_classes: Path | None,
    by_class: bool,
    sheet: Path | None,
    precision: float | None,
    thresholds: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a finished run against ground truth. A shard that has not changed is scored only once.

    With --dataset, the run must be over the data set's images, as `manifest --dataset` lists them, with the data set's
    classes. With --truth, images and labels are matched by their names, and images without a truth are left out.
    """
    from ovseg_batch.evaluate.edits import edit_figures
    from ovseg_batch.evaluate.run import vocabulary_of
    from ovseg_batch.evaluate.sheet import is_sheet
    from ovseg_batch.export.thresholds import are_thresholds, write_thresholds
    from ovseg_batch.io.marks import check_replaceable

    if (thresholds is None) != (precision is None):
        raise UsageError("--precision and --thresholds need each other: the target precision, and the file to write.")
    check_truth(dataset, root, truth, truth_classes)
    for file, is_ours in ((sheet, is_sheet), (thresholds, are_thresholds)):
        if file is not None:
            check_replaceable(file, is_ours)
    score = _score(Workdir(workdir), dataset, root, truth, truth_classes, sheet)
    if thresholds is not None and precision is not None:
        write_thresholds(thresholds, score.thresholds(precision))
    found, intervals, vocabulary = score.figures(), score.intervals(), vocabulary_of(Workdir(workdir))
    edits = edit_figures(Workdir(workdir), root or (truth or Path()).parent)
    if as_json:
        named = {"dataset": dataset} if truth is None else {"truth": str(truth), "without truth": score.without_truth}
        named |= {"vocabulary": vocabulary, **found, "intervals": intervals, "edits": edits, "classes": score.classes()}
        click.echo(json.dumps(plain(named), indent=2))
        return
    _print_figures(vocabulary, found, intervals, score.without_truth, edits)
    if by_class:
        for name, values in score.classes().items():
            click.echo(f"{name:24} " + "  ".join(f"{kind} {_figure(kind, value)}" for kind, value in values.items()))


def check_truth(dataset: str | None, root: Path | None, truth: Path | None, classes: Path | None) -> None:
    """Require exactly one ground truth, and options that fit it. Raises UsageError."""
    if (dataset is None) == (truth is None):
        raise UsageError(WHICH_TRUTH)
    if dataset is not None and root is None:
        raise UsageError(f"--dataset {dataset} needs --root, the folder of the data set or one above it.")
    if truth is None and classes is not None:
        raise UsageError("--truth-classes belongs to --truth with a folder of class maps.")


def _score(
    workdir: Workdir,
    dataset: str | None,
    root: Path | None,
    truth: Path | None,
    classes: Path | None,
    sheet: Path | None,
) -> Score:
    from ovseg_batch.evaluate.run import evaluate, evaluate_truth

    if truth is not None:
        return evaluate_truth(workdir, truth, classes, sheet)
    assert dataset is not None and root is not None
    return evaluate(workdir, datasets.load(dataset), root, sheet)


def _print_figures(
    vocabulary: str,
    found: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    without_truth: int,
    edits: Mapping[str, float],
) -> None:
    click.echo(f"{'vocabulary':16} {vocabulary}")
    shown = intervals if found["images"] > 1 else {}
    for name, value in found.items():
        low, high = shown.get(name, (value, value))
        limits = f"  95 % interval {_figure(name, low)} to {_figure(name, high)}" if name in shown else ""
        click.echo(f"{name:16} {_figure(name, value)}{limits}")
        if name == "images" and without_truth:
            click.echo(f"{'without truth':16} {without_truth}")
    for name, value in edits.items():
        click.echo(f"edits: {name:32} {value:.4g}")


def _figure(name: str, value: float) -> str:
    """Return a figure as it is usually published: IoU and accuracy in per cent, other scores as shares of 1."""
    if name == "images":
        return str(value)
    return f"{value:.2%}" if "IoU" in name or "accuracy" in name else f"{value:.3f}"


def plain(tree: Any) -> Any:
    """Return a value of JSON with None in place of NaN."""
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    return None if tree != tree else tree
