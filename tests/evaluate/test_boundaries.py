"""Boundary F1 where the truth has no boundary, and where ignored pixels lie between its classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ovseg_batch.evaluate.metrics import SemanticScore, boundary_f1

Array = np.ndarray[Any, Any]

SHAPE = (60, 80)
NOISE = np.random.default_rng(0).integers(0, 5, SHAPE)


def box(grown: int = 0) -> Array:
    """A map of class 0 with a box of class 1."""
    classes = np.zeros(SHAPE, np.int64)
    classes[20 - grown : 40 + grown, 20 - grown : 50 + grown] = 1
    return classes


@pytest.mark.parametrize("truth", [np.zeros(SHAPE, int), np.full(SHAPE, -1), np.where(box() == 1, -1, 0)])
def test_images_without_a_boundary_do_not_count(truth: Array) -> None:
    alone, beside, without = (SemanticScore(5) for _ in range(3))
    alone.add(NOISE, truth)
    assert math.isnan(boundary_f1(NOISE, truth)) and math.isnan(alone.boundary_f1())
    for score in (beside, without):
        score.add(np.roll(box(), 2, 0), box())
    beside.add(NOISE, truth)
    assert beside.boundary_f1() == without.boundary_f1() < 1


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_boundary_anywhere_in_a_ring_of_ignored_pixels_is_right(rows: int, share: float) -> None:
    truth = np.where(box(rows) != box(), -1, box())
    assert boundary_f1(box(round(rows * share)), truth) == 1.0
    assert boundary_f1(np.zeros(SHAPE, int), truth) == 0.0
    assert boundary_f1(np.roll(box(), 20, 1), truth) < 0.5


def test_what_is_predicted_in_other_ignored_pixels_does_not_count() -> None:
    truth, found = box(), box()
    truth[:8] = -1
    found[:8] = NOISE[:8]
    assert boundary_f1(found, truth) == 1.0


def test_maps_without_ignored_pixels_are_scored_as_before() -> None:
    assert boundary_f1(box(), box()) == 1.0
    assert boundary_f1(box(1), box()) == pytest.approx(0.98110517)
    assert boundary_f1(box(3), box()) == 0.0


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64])
def test_pixels_of_no_class_are_ignored_as_255_in_pngs(kind: type[np.integer[Any]]) -> None:
    ignored, plain = SemanticScore(5), SemanticScore(5)
    truth = np.where(np.arange(80) < 20, 255, box()).astype(kind)
    ignored.add(NOISE, truth)
    plain.add(NOISE, np.where(np.arange(80) < 20, -1, box()))
    assert ignored.boundary_f1() == plain.boundary_f1() and ignored.accuracy() == plain.accuracy()
    assert ignored.arrays()["confusion"].sum() == 60 * 60
