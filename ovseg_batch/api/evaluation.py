"""Evaluate runs from Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovseg_batch import datasets
from ovseg_batch.api.calling import to_path
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.run import evaluate, evaluate_truth
from ovseg_batch.workdir.store import Workdir


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
        raise UsageError("Give either truth= or dataset= with root=.")
    if truth is not None:
        score = evaluate_truth(workdir, to_path(truth), None if classes is None else to_path(classes))
    else:
        assert dataset is not None and root is not None
        score = evaluate(workdir, datasets.load(dataset), to_path(root))
    figures, intervals = score.figures(), score.intervals()
    return Evaluation(score.images, score.without_truth, figures, intervals, score.classes())
