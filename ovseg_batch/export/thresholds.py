"""Confidence thresholds per label, so that easy labels do not dominate the training on exported masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ovseg_batch.errors import UsageError
from ovseg_batch.io.atomic import write_text
from ovseg_batch.io.records import parse_json
from ovseg_batch.methods.confidence import STEPS, step_of
from ovseg_batch.types import MaskSummary
from ovseg_batch.types.arrays import Doubles
from ovseg_batch.workdir.results import Results


def keep_share(results: Results, share: float) -> dict[str, float]:
    """Return the highest threshold of each label that keeps at least a share of its pixels.

    Args:
        results: a run.
        share: least share of pixels to keep, in (0, 1].

    Returns:
        label → threshold in steps of 1/1000, for labels with masks.
    """
    pixels = {label: np.zeros(STEPS + 1) for label in results.labels}
    for commit in results.masks.commits():
        for image in results.shard(commit.shard, MaskSummary):
            for one in image.annotations:
                pixels[one.category][step_of(one.confidence)] += one.area
    return {label: _highest(counts, share) for label, counts in pixels.items() if counts.any()}


def _highest(counts: Doubles, share: float) -> float:
    above = np.cumsum(counts[::-1])[::-1]  # pixels that remain if a bin is the threshold
    return float(np.flatnonzero(above >= share * above[0] - 1e-9)[-1]) / STEPS


def write_thresholds(path: Path, thresholds: Mapping[str, float]) -> None:
    write_text(path, json.dumps(thresholds, indent=2, ensure_ascii=False) + "\n")


def are_thresholds(file: Path) -> bool:
    """Return whether a file holds thresholds."""
    try:
        read_thresholds(file)
    except UsageError:
        return False
    return True


def read_thresholds(path: Path) -> dict[str, float]:
    """Read a file of thresholds. Raises UsageError if it is not one."""
    try:
        content = parse_json(path.read_bytes())
        found = {str(label): float(value) for label, value in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} is not a file of thresholds that `eval --thresholds` wrote: {error}") from None
    if not all(0 <= value <= 1 for value in found.values()):
        raise UsageError(f"{path} holds thresholds outside 0 … 1.")
    return found
