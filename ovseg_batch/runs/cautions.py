"""Warnings about the settings of a run, before it computes anything."""

from __future__ import annotations

import os

from ovseg_batch.models.precision import uses_gpu
from ovseg_batch.runs.planning import embedded_models
from ovseg_batch.settings import Config
from ovseg_batch.stages.registry import make_vocabulary
from ovseg_batch.units import counted
from ovseg_batch.wording import called_from_python, setting
from ovseg_batch.workdir.findings import embedded_note

FEW_LABELS = 10  # fewer than these do not cover what photographs show


def cautions(config: Config) -> list[str]:
    """Return warnings about the settings of a run."""
    notes = []
    if (note := embedded_note(embedded_models(config))) and not called_from_python():  # there it is a UserWarning
        notes.append(note)
    least = 1 / max(len(config.labels), 1)  # of a pixel's best probability
    sure = all(max(label.threshold, config.dense.prob_threshold) <= least for label in config.labels)
    few = len(config.labels) < FEW_LABELS and sure
    if few and config.method == "dense" and config.labels and not make_vocabulary(config).has_background:
        one = len(config.labels) == 1
        notes.append(
            f"{counted(len(config.labels), 'label')} and no background: every pixel gets "
            f"{'it' if one else 'one of them'}. Set background: auto, or name words for everything else."
        )
    workers, cores = config.run.workers or 1, len(os.sched_getaffinity(0))
    threads = config.run.threads or cores
    shared = config.run.engine == "local" and workers > 1 and not uses_gpu(config.run.device)
    if shared and workers * threads > cores:
        notes.append(
            f"{workers} workers of {threads} threads each on {cores} cores stand in each other's way. "
            f"Give each fewer: {setting('run.threads', max(1, cores // workers))}, from the run's first shard on."
        )
    return notes
