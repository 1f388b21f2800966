"""Evaluate and compare runs from Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovseg_batch import datasets
from ovseg_batch.api.calling import to_path
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.comparison.compare import SHOWN, Comparison, compare_runs
from ovseg_batch.evaluate.comparison.difference import TruthDifference, truth_difference
from ovseg_batch.evaluate.comparison.record import verdicts
from ovseg_batch.evaluate.run import evaluate, evaluate_truth
from ovseg_batch.report.comparison import check_destination, write_comparison
from ovseg_batch.wording import for_python
from ovseg_batch.workdir.store import Workdir

ONE_TRUTH = "Give either truth= or dataset= with root=."


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of a run on ground truth.

    Attributes:
        images: scored images.
        without_truth: images of the run that the truth does not have.
        figures: metric → value, mostly in [0, 1]. Metrics that the truth does not support are missing.
        intervals: metric → limits of its 95 % interval, from bootstrap samples of the images.
        classes: class → metric → value, NaN where the class does not occur.
    """

    images: int
    without_truth: int
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    classes: dict[str, dict[str, float]]


def evaluation(
    workdir: Workdir,
    truth: str | Path | None,
    classes: str | Path | None,
    dataset: str | None,
    root: str | Path | None,
) -> Evaluation:
    """Evaluate a run. The arguments are those of `Run.evaluate`."""
    if (truth is None) == (dataset is None) or (dataset is not None and root is None):
        raise UsageError(ONE_TRUTH)
    if truth is not None:
        score = evaluate_truth(workdir, to_path(truth), None if classes is None else to_path(classes))
    else:
        assert dataset is not None and root is not None
        score = evaluate(workdir, datasets.load(dataset), to_path(root))
    figures, intervals = score.figures(), score.intervals()
    return Evaluation(score.images, score.without_truth, figures, intervals, score.classes())


@dataclass(frozen=True, slots=True)
class Compared:
    """Two runs, A and B.

    Attributes:
        masks: settings, labels, masks and pixels of both.
        truth: their difference on ground truth, or None without one.
        page: path of the page, or None.
    """

    masks: Comparison
    truth: TruthDifference | None
    page: Path | None

    @property
    def images(self) -> int:
        """Return the number of compared images."""
        return self.masks.images

    @property
    def verdict(self) -> str:
        """Return the result in one or two sentences."""
        return " ".join(verdicts(self.masks, self.truth))


@for_python()
def compare(
    a: str | Path,
    b: str | Path,
    path: str | Path | None = None,
    *,
    truth: str | Path | None = None,
    classes: str | Path | None = None,
    dataset: str | None = None,
    root: str | Path | None = None,
    limit: int = SHOWN,
) -> Compared:
    """Compare the runs of two workdirs over the same images, as `ovseg-batch compare` does.

    Args:
        a, b: the workdirs.
        path: the folder of the page to write. None: no page.
        truth, classes, dataset, root: ground truth, as in `Run.evaluate`.
        limit: most images to list and to show.

    Raises:
        UsageError: the runs have no image in common, or the truth is wrong.
    """
    if (truth is not None and dataset is not None) or (dataset is None) != (root is None):
        raise UsageError(ONE_TRUTH)
    runs = Workdir(to_path(a)), Workdir(to_path(b))
    if path is not None:
        check_destination(to_path(path))
    found, against = compare_runs(*runs, limit), None
    if truth is not None or dataset is not None:
        against = truth_difference(
            *runs,
            None if truth is None else to_path(truth),
            None if classes is None else to_path(classes),
            None if dataset is None else datasets.load(dataset),
            None if root is None else to_path(root),
        )
    page = None if path is None else write_comparison(*runs, found, against, to_path(path))
    return Compared(found, against, page)
