"""Forecast the bytes that a run writes, from the files of a sample and the sizes of images."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from ovseg_batch.runs.planning import PlannedStage
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import ARRAYS
from ovseg_batch.stages.registry import make_plan, resolve, stage_names
from ovseg_batch.workdir.store import Workdir


@dataclass(frozen=True, slots=True)
class Disk:
    """The bytes of a run.

    Attributes:
        kinds: kind of file → bytes for the whole list.
        free: bytes that are free where the sample is.
    """

    kinds: dict[str, int]
    free: int

    @property
    def total(self) -> int:
        return sum(self.kinds.values())


def disk_of(
    config: Config,
    stages: Sequence[PlannedStage],
    sizes: Sequence[tuple[int, int]],
    images: int,
    sampled: int,
    workdir: Workdir,
) -> Disk:
    """Return the bytes that a run with these settings writes.

    Args:
        config: settings of the run, which may keep less than the sample.
        stages: those of the sample.
        sizes: (height, width) of images of the list.
        images: images of the list.
        sampled: images of the sample.
        workdir: of the sample.
    """
    arrays, others = _written(stages)
    kinds: dict[str, float] = {}
    resolved = resolve(config)
    for name in stage_names(config):
        plan = make_plan(resolved, name)
        known = [plan.estimate_bytes(*size) for size in sizes]
        numbers = [size for size in known if size is not None]
        each = sum(numbers) / len(numbers) if numbers and len(numbers) == len(known) else arrays.get(name, 0) / sampled
        if each:
            kinds[f"arrays of {name}"] = each * images
        if written := others.get(name):
            kinds[f"files of {name}"] = written / sampled * images
    if workdir.annotations.exists():
        kinds[workdir.annotations.name] = workdir.annotations.stat().st_size / sampled * images
    return Disk({kind: round(size) for kind, size in kinds.items()}, shutil.disk_usage(workdir.root).free)


def _written(stages: Sequence[PlannedStage]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes of the arrays of each stage, and those of its other files."""
    arrays: dict[str, int] = {}
    others: dict[str, int] = {}
    for planned in stages:
        for commit in planned.job.store.commits():
            for file in commit.files:
                kind = arrays if file.path.endswith(ARRAYS) else others
                kind[planned.name] = kind.get(planned.name, 0) + file.bytes
    return arrays, others
