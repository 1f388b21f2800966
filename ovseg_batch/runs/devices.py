"""The workers of a stage: their number, their devices and their threads."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ovseg_batch.engine.devices import is_gpu, workers_per_gpu
from ovseg_batch.models.precision import uses_gpu
from ovseg_batch.runs.planning import PlannedStage
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import Resources


def worker_devices(config: Config, resources: Resources) -> list[str]:
    """Return one device per worker: the visible GPUs in turn, or the CPU for a stage that needs no accelerator."""
    workers = config.run.workers
    if not uses_gpu(config.run.device):
        return ["cpu"] * (workers or 1)
    import torch

    from ovseg_batch.models.device import resolve_device

    device = str(resolve_device(config.run.device))
    names = [f"cuda:{k}" for k in range(torch.cuda.device_count())] if device == "cuda" else [device]
    if not resources.accelerator:
        return ["cpu"] * (workers or len(names))
    if workers is None and resources.shared and is_gpu(device):
        memory = min(torch.cuda.get_device_properties(name).total_memory for name in names)
        workers = len(names) * workers_per_gpu(len(os.sched_getaffinity(0)), len(names), memory)
    return [names[k % len(names)] for k in range(workers or len(names))]


def worker_threads(planned: PlannedStage, devices: Sequence[str]) -> int | None:
    """Return the threads of each worker. Workers that share GPUs also share the cores, if no setting says otherwise."""
    if planned.job.threads is None and is_gpu(devices[0]) and len(devices) > len(set(devices)):
        return max(1, len(os.sched_getaffinity(0)) // len(devices))
    return planned.job.threads


def worker_count(planned: PlannedStage, config: Config) -> int:
    """Return the number of shards that are computed at once; 1 on a cluster if the settings have no number."""
    if config.run.engine == "local":
        return len(worker_devices(config, planned.plan.resources))
    return max(config.run.workers or 1, 1)
