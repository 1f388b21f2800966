"""The forecast of a run: the ratio estimate and its interval."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from ovseg_batch.runs.trying.forecast import DRIFT, Measured, quantile, rounded
from ovseg_batch.runs.trying.forecast import forecast as forecast_with_drift

SHARDS, EACH = 8, 3

forecast = functools.partial(forecast_with_drift, drift=0.0)


def stage(name: str, seconds: list[float], work: list[float], per_image: list[float], workers: int = 1) -> Measured:
    return Measured(name, 2.0, tuple(seconds), tuple(work), tuple(per_image), workers)


def test_time_in_proportion_to_work_is_forecast_exactly() -> None:
    work = [3.0, 6.0, 9.0]
    found = forecast(100, 9, [stage("dense", [0.5 * w for w in work], work, [2.0] * 50)], around=1.0)
    assert found.seconds == pytest.approx(1.0 + 2.0 + 100 * 2.0 * 0.5)
    assert found.low == pytest.approx(found.seconds) and found.high == pytest.approx(found.seconds)
    [dense] = found.stages
    assert [dense.start, dense.per_image, dense.images_per_second] == pytest.approx([2.0, 1.0, 1.0])


def test_workers_divide_the_time_of_shards_but_not_the_start() -> None:
    alone, both = (forecast(60, 6, [stage("dense", [1, 2, 3], [1, 2, 3], [1.0] * 60, n)]).seconds for n in (1, 2))
    assert [alone, both] == pytest.approx([62.0, 32.0])


def test_the_shares_add_up_and_opposite_residuals_cancel() -> None:
    first = stage("a", [1, 3, 1, 3], [2, 2, 2, 2], [1.0] * 9)
    second = stage("b", [3, 1, 3, 1], [2, 2, 2, 2], [1.0] * 9)
    found = forecast(1000, 8, [first, second])
    assert sum(one.share for one in found.stages) == pytest.approx(1.0)
    assert found.low == pytest.approx(found.seconds), "what one stage takes more, the other takes less in each shard"
    alone = forecast(1000, 8, [first])
    assert alone.low is not None and alone.low < alone.seconds


def test_few_shards_have_no_interval_and_a_whole_list_no_error() -> None:
    assert forecast(100, 2, [stage("a", [1, 2], [1, 1], [1.0] * 10)]).low is None
    whole = forecast(8, 8, [stage("a", [1, 2, 3, 2], [2, 2, 2, 2], [1.0] * 8)])
    assert whole.low == pytest.approx(whole.seconds)


def test_the_interval_allows_for_another_speed_of_the_machine() -> None:
    work = [3.0, 6.0, 9.0]
    found = forecast_with_drift(100, 9, [stage("dense", work, work, [2.0] * 50)])
    assert found.high is not None
    assert found.high - found.seconds == pytest.approx(1.96 * math.sqrt(2) * DRIFT * 200)


def simulated(rng: np.random.Generator, images: int, drift: float) -> bool:
    """Forecast a random list from 24 of its images. Return whether the interval holds the true time."""
    windows = rng.choice([9.0, 12.0, 12.0, 15.0, 30.0], images)
    busy = rng.lognormal(0, 0.4, images)  # crowded images have more windows' worth of prompts
    dense = 0.1 * windows * rng.lognormal(0, 0.05, images)
    refine = 1.0 + 2.0 * busy
    edit = rng.random(images) * (rng.random(images) < 0.5)
    drawn = rng.choice(images, SHARDS * EACH, replace=False).reshape(SHARDS, EACH)
    sizes = windows[rng.choice(images, min(images, 2_000), replace=False)].tolist()
    ones = [1.0] * len(sizes)
    stages = [
        Measured("dense", 0.0, tuple(dense[drawn].sum(1)), tuple(windows[drawn].sum(1)), tuple(sizes)),
        Measured("refine", 0.0, tuple(refine[drawn].sum(1)), (float(EACH),) * SHARDS, tuple(ones)),
        Measured("edit", 0.0, tuple(edit[drawn].sum(1)), (float(EACH),) * SHARDS, tuple(ones)),
    ]
    found = forecast(images, SHARDS * EACH, stages, drift=drift)
    assert found.low is not None and found.high is not None
    slower = rng.lognormal(0, math.sqrt(2) * drift)  # the run than the trial
    return bool(found.low <= slower * (dense.sum() + refine.sum() + edit.sum()) <= found.high)


@pytest.mark.parametrize("drift", [0.0, DRIFT])
@pytest.mark.parametrize("images", [200, 20_000])
def test_the_interval_holds_the_time_of_nine_simulated_lists_in_ten(images: int, drift: float) -> None:
    rng = np.random.default_rng(20)
    inside = sum(simulated(rng, images, drift) for _ in range(1_000))
    assert inside >= 900, f"{inside} of 1,000"


def test_the_quantiles_are_those_of_student() -> None:
    published = {1: 12.706, 2: 4.303, 7: 2.365, 15: 2.131, 16: 2.120, 20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980}
    assert {n: quantile(n) for n in published} == pytest.approx(published, abs=6e-3)


def test_durations_have_two_or_three_digits() -> None:
    found = [rounded(seconds) for seconds in (42, 500, 20_400, 3 * 3600, 31 * 3600, 300 * 3600)]
    assert found == ["42 s", "8 min", "5 h 40 min", "3 h", "31 h", "12.5 days"]
    assert not math.isnan(quantile(3))
