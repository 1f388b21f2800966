"""The difference of two runs on ground truth, with paired intervals over the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovseg_batch.datasets import Dataset
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.comparison.pairing import pair_images
from ovseg_batch.evaluate.intervals.image_counts import interval, iou_of, mean_known, samples, weighted_sums
from ovseg_batch.evaluate.run import score_run
from ovseg_batch.evaluate.truth.datasets import TruthReader
from ovseg_batch.evaluate.truth.own import OwnTruth, open_truth
from ovseg_batch.types.arrays import AnyArray, Doubles, Indices
from ovseg_batch.units import counted
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure in A and B, and their difference.

    Attributes:
        a, b: in [0, 1]; NaN where the figure does not exist.
        limits: 95 % interval of b - a, from paired bootstrap samples of the images.
    """

    a: float
    b: float
    limits: tuple[float, float]

    @property
    def change(self) -> float:
        return self.b - self.a

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes 0."""
        low, high = self.limits
        return low > 0 or high < 0


@dataclass(frozen=True, slots=True)
class TruthDifference:
    """Two runs on ground truth.

    Attributes:
        images: images that both runs have finished and the truth has.
        mean: of mIoU.
        classes: class → of its IoU.
    """

    images: int
    mean: Difference
    classes: dict[str, Difference]

    def sentence(self) -> str:
        """Return the result as a sentence."""
        points, (low, high) = 100 * self.mean.change, (100 * limit for limit in self.mean.limits)
        if math.isnan(points):
            return "The truth has no class of both runs, so there is no difference to state."
        if self.images < 2:
            return f"B − A is {points:+.1f} points of mIoU on 1 image. One image gives no interval."
        where = f"95 % interval {low:.1f} to {high:.1f}, {counted(self.images, 'image')}"
        if self.mean.is_shown and points > 0:
            return f"B is better than A by {points:.1f} points of mIoU ({where})."
        if self.mean.is_shown and points < 0:
            where = f"95 % interval {-high:.1f} to {-low:.1f}, {counted(self.images, 'image')}"
            return f"A is better than B by {-points:.1f} points of mIoU ({where})."
        return f"No difference could be shown: B − A is {points:+.1f} points of mIoU ({where})."


def truth_difference(
    a: Workdir,
    b: Workdir,
    truth: Path | None = None,
    classes: Path | None = None,
    dataset: Dataset | None = None,
    root: Path | None = None,
) -> TruthDifference:
    """Compute the difference of two runs on ground truth. Unfinished runs are compared on what both have finished.

    Args:
        truth, classes: as in `evaluate_truth`.
        dataset, root: as in `evaluate`, in place of `truth`.

    Raises:
        UsageError: as these, or the truth has no class maps.
    """
    runs = Results.open(a), Results.open(b)
    tables, names, owns = [], list[Sequence[str]](), list[OwnTruth]()
    for run in runs:
        shards = [commit.shard for commit in run.masks.commits()]
        if truth is not None:
            own = open_truth(truth, run, classes)
            owns.append(own)
            score, scored = score_run(run, own.dataset, own, str(truth.absolute()), shards), own.dataset.scored
        else:
            assert dataset is not None and root is not None
            score, scored = score_run(run, dataset, TruthReader(dataset, root), str(root), shards), dataset.scored
        if score.counts is None:
            raise UsageError("The truth has no class maps, which the comparison of two runs needs.")
        tables.append(score.counts.arrays())
        names.append(scored)
    return _difference(tables, names, _partners(names, owns), pair_images(*runs).rows)


def _partners(names: Sequence[Sequence[str]], owns: Sequence[OwnTruth]) -> list[tuple[int, int]]:
    """Return the indices of each class in A and in B. Runs may name a category of the truth differently."""
    if not owns:
        return [(k, k) for k in range(len(names[0]))]
    pairs = zip(owns[0].labels.values(), owns[1].labels.values(), strict=True)
    found = [(names[0].index(one), names[1].index(other)) for one, other in dict.fromkeys(pairs)]
    background = "background"
    if background in names[0] and background in names[1] and (0, 0) not in found:
        found.insert(0, (0, 0))
    return found


def _difference(
    tables: Sequence[Mapping[str, AnyArray]],
    names: Sequence[Sequence[str]],
    partners: Sequence[tuple[int, int]],
    pairs: Indices,
) -> TruthDifference:
    scored = [table["boundaries"][:, 0].astype(np.int64) for table in tables]
    pairs = pairs[np.isin(pairs[:, 0], scored[0]) & np.isin(pairs[:, 1], scored[1])]
    if not len(pairs):
        raise UsageError(
            "No image is finished in both runs and has a truth of its size, so there is nothing to compare."
        )
    found = [_of_run(tables[side]["pixels of images"], pairs, side, len(names[side])) for side in (0, 1)]
    ones = np.ones((1, len(pairs)))
    totals = [iou_of(weighted_sums(*one, ones)[:, :-1])[0] for one in found]
    samples_iou = []
    for weights in samples(len(pairs)):
        samples_iou.append([iou_of(weighted_sums(*one, weights)[:, :-1]) for one in found])
    drawn = [np.concatenate([one[side] for one in samples_iou]) for side in (0, 1)]
    means = [mean_known(one) for one in drawn]
    mean = Difference(_mean(totals[0]), _mean(totals[1]), interval(means[1] - means[0]))
    classes = {
        names[0][i]: Difference(float(totals[0][i]), float(totals[1][j]), interval(drawn[1][:, j] - drawn[0][:, i]))
        for i, j in partners
        if not (math.isnan(totals[0][i]) and math.isnan(totals[1][j]))
    }
    return TruthDifference(len(pairs), mean, classes)


def _of_run(table: AnyArray, pairs: Indices, side: int, classes: int) -> tuple[AnyArray, Indices, int]:
    """Return the counts of the paired images with the numbers of the pairs as rows, these, and the classes counted."""
    order = np.argsort(pairs[:, side])
    known = pairs[order, side]
    place = np.searchsorted(known, table[:, 0]).clip(0, len(known) - 1)
    kept = known[place] == table[:, 0]
    numbered = table[kept].copy()
    numbered[:, 0] = order[place[kept]]
    return numbered, np.arange(len(pairs)), classes + 1


def _mean(values: Doubles) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
