"""What every engine is given: the shards of one stage, and how to compute one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ovseg_batch.io.manifest import Manifest
from ovseg_batch.models.device import keep_memory, resolve_device
from ovseg_batch.stages.base import Stage, probe_shard, run_shard
from ovseg_batch.store import StageStore
from ovseg_batch.types import Commit


@dataclass(frozen=True, slots=True)
class StageJob:
    """All a worker needs to run shards of one stage; picklable, so that another process can take it.

    `threads` are those that PyTorch computes with. They are the same for every worker, because the number decides in
    which order floating-point sums are taken, and so the last bits of a result.
    """

    make_stage: Callable[[], Stage]
    store: StageStore
    upstream: dict[str, StageStore]
    manifest: Path
    threads: int
    retry: bool = False  # keep what is there and compute failed rows alone

    def open(self, device: str) -> OpenJob:
        """Load the stage's models."""
        torch.set_num_threads(self.threads)
        if resolve_device(device).type == "cpu":
            keep_memory()
        stage = self.make_stage()
        stage.setup(device)
        return OpenJob(self, stage, Manifest.open(self.manifest))


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job whose models are loaded."""

    job: StageJob
    stage: Stage
    manifest: Manifest

    def compute(self, shard: int, charged: Mapping[int, str]) -> Commit:
        """Compute and commit one shard; `charged` rows (row → why) fail without being looked at."""
        rows = self.manifest.read_shard(shard)
        return run_shard(self.stage, self.job.store, shard, rows, self.job.upstream, charged, self.job.retry)

    def probe(self, shard: int, charged: Mapping[int, str], note: Callable[[int], None]) -> None:
        """Do the work of every row by itself for nothing but to see which one kills; `note` is told each one first."""
        rows = [row for row in self.manifest.read_shard(shard) if row.row not in charged]
        probe_shard(self.stage, shard, rows, self.job.upstream, note)
