"""Forecast the time and the disk of a run from a sample of its images. Nothing here reads a file.

The time of a stage is a ratio estimate: the seconds of the sampled images, divided by their work, times the work of the
whole list (Cochran, Sampling Techniques, 3rd ed. 1977, chapter 6). The work of an image follows from its size, see
`StagePlan.work`. The residuals of all stages are added in each shard before their variance is computed, because the
stages have the same images there. The interval also allows for a machine whose speed changes between trial and run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovseg_batch.workdir.progress import pace

#: 0.975 quantile of Student's t by degrees of freedom; Abramowitz and Stegun, Handbook, table 26.10
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
NORMAL_975 = 1.96
LEAST_SHARDS = 3  # a variance of fewer shards says nothing
DRIFT = 0.06  # coefficient of variation of equal work, repeated on one machine; docs/try.md has the measurement


@dataclass(frozen=True, slots=True)
class Measured:
    """What a stage has taken for the sample.

    Attributes:
        name: of the stage.
        start: seconds from the start of the stage to its first shard: processes, models, words.
        seconds: (K,) seconds of a worker for each shard.
        work: (K,) work of each shard.
        per_image: (M,) work of each image whose size is known.
        workers: shards that are computed at once.
    """

    name: str
    start: float
    seconds: tuple[float, ...]
    work: tuple[float, ...]
    per_image: tuple[float, ...]
    workers: int = 1

    @property
    def rate(self) -> float:
        """Seconds of all workers together per unit of work."""
        return sum(self.seconds) / max(sum(self.work), 1e-9) / self.workers


@dataclass(frozen=True, slots=True)
class StageTime:
    """The time of a stage in the whole run.

    Attributes:
        start: seconds before its first shard.
        per_image: seconds per image, of all workers together.
        seconds: seconds for the whole list, with the start.
        share: of the time of all stages, in [0, 1].
    """

    name: str
    start: float
    per_image: float
    seconds: float
    share: float

    @property
    def images_per_second(self) -> float:
        return 1 / self.per_image if self.per_image else math.inf


@dataclass(frozen=True, slots=True)
class Forecast:
    """The time of a whole run.

    Attributes:
        images: images of the list.
        seconds: expected time.
        low, high: 95 % interval of the time. None: the sample has too few shards for one.
        stages: time of each stage.
    """

    images: int
    seconds: float
    low: float | None
    high: float | None
    stages: tuple[StageTime, ...]


def forecast(
    images: int, sampled: int, stages: Sequence[Measured], around: float = 0.0, drift: float = DRIFT
) -> Forecast:
    """Return the forecast of a run.

    Args:
        images: images of the whole list.
        sampled: images of the sample, which are a part of the list.
        stages: the measurements. All have the same shards.
        around: seconds that the run takes outside of its stages.
        drift: coefficient of variation of the machine's speed, of the trial and of the run alike.
    """
    of_stages = []
    residual = np.zeros(max((len(one.seconds) for one in stages), default=0))
    each = np.zeros(max((len(one.per_image) for one in stages), default=0))
    for one in stages:
        work, seconds = np.array(one.work), np.array(one.seconds)
        total = images * (float(np.mean(one.per_image)) if one.per_image else 0.0)
        of_stages.append((one, one.rate * total))
        if work.sum() > 0:
            ratio = seconds.sum() / work.sum()
            residual += total / one.workers * (seconds - ratio * work) / work.mean()
            each += one.rate * np.array(one.per_image)
    computed = sum(seconds for _, seconds in of_stages)
    fixed = around + sum(one.start for one in stages)
    half = _half_width(residual, each, images, sampled)
    if half is not None:
        half = math.hypot(half, NORMAL_975 * math.sqrt(2) * drift * computed)
    return Forecast(
        images,
        fixed + computed,
        None if half is None else max(fixed, fixed + computed - half),
        None if half is None else fixed + computed + half,
        tuple(
            StageTime(
                one.name,
                one.start,
                seconds / max(images, 1),
                one.start + seconds,
                (one.start + seconds) / max(fixed + computed, 1e-9),
            )
            for one, seconds in of_stages
        ),
    )


def _half_width(residual: np.ndarray, each: np.ndarray, images: int, sampled: int) -> float | None:
    """Return half of the width of the 95 % interval of the time, at equal speed of the machine.

    Args:
        residual: (K,) sum over the stages of what each shard takes more than its work explains, for the whole list.
        each: (M,) seconds of images by their work alone, whose mean over the list is estimated.
        images: images of the list.
        sampled: images of the shards together.
    """
    shards = len(residual)
    if shards < LEAST_SHARDS:
        return None
    left = max(0.0, 1 - sampled / max(images, 1))  # no error is left where the sample is the list
    variance = left * float(np.var(residual, ddof=1)) / shards
    if len(each) > 1:
        known = max(0.0, 1 - len(each) / max(images, 1))
        variance += known * images**2 * float(np.var(each, ddof=1)) / len(each)
    return quantile(shards - 1) * math.sqrt(variance)


def quantile(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t: from the table, beyond it by two terms of its expansion.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 26.7.5.
    """
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z = NORMAL_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def rounded(seconds: float) -> str:
    """Return a duration with two or three digits: `42 s`, `8 min`, `5 h 40 min`, `31 h`, `12 days`."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes:.0f} min"
    if minutes < 24 * 60:
        whole, left = divmod(5 * round(minutes / 5), 60)
        return f"{whole} h {left:02} min" if left else f"{whole} h"
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.1f} days"


def per_second(stage: StageTime) -> str:
    """Return images per second as text."""
    return "–" if math.isinf(stage.images_per_second) else pace(stage.images_per_second)
