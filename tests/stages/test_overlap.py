"""Three steps in three threads give what three steps one after the other give."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovseg_batch.stages.refine import stage as refine
from ovseg_batch.stages.refine.overlap import AHEAD, MOST_PIXELS, in_three_steps
from tests.conftest import Command, data_files, run_arguments


@pytest.mark.parametrize("overlapping", [False, True])
def test_everything_comes_out_in_order(overlapping: bool) -> None:
    threads: dict[str, set[int]] = {"before": set(), "during": set(), "after": set()}

    def step(name: str, number: int) -> int:
        threads[name].add(threading.get_ident())
        time.sleep(0.002 * (number % 3))
        return number

    before, during, after = (functools.partial(step, name) for name in threads)
    assert list(in_three_steps(range(20), before, during, after, lambda number: 1, overlapping)) == list(range(20))
    assert threads["during"] == {threading.get_ident()}
    assert len(set.union(*threads.values())) == (3 if overlapping else 1)


def test_only_a_few_are_under_way_and_large_ones_are_alone() -> None:
    begun, ended, most = 0, 0, 0

    def before(size: int) -> int:
        nonlocal begun, most
        begun += 1
        most = max(most, begun - ended)
        return size

    def after(size: int) -> int:
        nonlocal ended
        ended += 1
        return size

    assert sum(in_three_steps([1] * 50, before, lambda x: x, after, lambda size: size, True)) == 50
    assert most <= 2 * AHEAD + 3
    most = 0
    large = [MOST_PIXELS] * 6
    assert list(in_three_steps(large, before, lambda x: x, after, lambda size: size, True)) == large
    assert most == 1


def test_the_next_image_is_prepared_while_memory_limits_those_under_way() -> None:
    started = [threading.Event() for _ in range(12)]

    def before(number: int) -> int:
        started[number].set()
        return number

    def during(number: int) -> int:
        assert number + 1 == len(started) or started[number + 1].wait(10)
        return number

    def after(number: int) -> int:
        time.sleep(0.02)
        return number

    numbers = range(len(started))
    assert list(in_three_steps(numbers, before, during, after, lambda number: MOST_PIXELS // 4, True)) == [*numbers]


@pytest.mark.parametrize("where", range(3))
def test_an_error_in_any_step_is_the_caller_s(where: int) -> None:
    def step(number: int, place: int) -> int:
        if number == 3 and place == where:
            raise KeyError("here")
        return number

    before, during, after = (functools.partial(step, place=place) for place in range(3))
    with pytest.raises(KeyError, match="here"):
        list(in_three_steps(range(6), before, during, after, lambda number: 1, True))


@pytest.mark.parametrize("method", ["prompted", "guided", "trident"])
def test_refine_is_the_same_with_its_steps_overlapping(
    few_scenes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """As on a GPU: the steps overlap there, and here where a test sets it."""
    settings = ("--set", f"refine.method={method}", "--workers", "0")
    plain, overlapped = tmp_path / "plain", tmp_path / "overlapped"
    assert command(*run_arguments(few_scenes / "images", plain, *settings)).returncode == 0

    def forced(*arguments: Any) -> Iterator[Any]:
        items, before, during, after, pixels, _ = arguments
        return in_three_steps(items, before, during, after, pixels, True)

    monkeypatch.setattr(refine, "in_three_steps", forced)
    assert command(*run_arguments(few_scenes / "images", overlapped, *settings)).returncode == 0
    assert data_files(plain) == data_files(overlapped)
