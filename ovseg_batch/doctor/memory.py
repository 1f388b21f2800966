"""Measure the peak memory of this process and of its GPU per stage."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from ovseg_batch.models.faults import has_started

PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # value of clear_refs that resets the peak to the present size (proc(5))


class PeakMemory(logging.Handler):
    """Records the peaks at every shard that a run reports.

    A run logs every committed shard in the process that started it (`ovseg_batch.runs.meter`). So what is read then
    belongs to the stage of that shard.

    Attributes:
        process: stage → peak bytes of the resident memory.
        gpu: stage → peak bytes that tensors took on the GPU; empty on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(logging.INFO)
        self.process: dict[str, int] = {}
        self.gpu: dict[str, int] = {}
        self._device = device
        self._reset()

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "fields", {})
        if fields.get("event") != "shard":
            return
        stage = fields["stage"]
        self.process[stage] = max(self.process.get(stage, 0), _peak())
        if self._device.type == "cuda":
            self.gpu[stage] = max(self.gpu.get(stage, 0), torch.cuda.max_memory_allocated(self._device))
        self._reset()

    def _reset(self) -> None:
        with contextlib.suppress(OSError):  # sandboxes may forbid it; the peak then includes earlier stages
            (PROCESS / "clear_refs").write_text(RESET_PEAK)
        if self._device.type == "cuda" and has_started():
            torch.cuda.reset_peak_memory_stats(self._device)


def _peak() -> int:
    """Return the peak resident memory of this process in bytes since the last reset."""
    with contextlib.suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Record the peaks of every run in this block, and suppress its messages below warnings."""
    recorder = PeakMemory(device)
    shards, everything = logging.getLogger("ovseg_batch.runs.meter"), logging.getLogger("ovseg_batch")
    before = shards.level, shards.propagate, everything.level
    shards.addHandler(recorder)
    shards.propagate = False
    shards.setLevel(logging.INFO)
    everything.setLevel(logging.WARNING)
    try:
        yield recorder
    finally:
        shards.removeHandler(recorder)
        shards.propagate = before[1]
        shards.setLevel(before[0])
        everything.setLevel(before[2])
