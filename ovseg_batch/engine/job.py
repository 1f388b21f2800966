"""The job of an engine: compute shards of one stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ovseg_batch.errors import DeviceLost, is_out_of_memory
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.models.faults import first_line, is_lost
from ovseg_batch.stages.base import Stage
from ovseg_batch.stages.shard import Progress, probe_shard, run_shard
from ovseg_batch.types import Commit
from ovseg_batch.workdir.store import StageStore


@dataclass(frozen=True, slots=True)
class StageJob:
    """The parameters of a worker that computes shards of one stage. It can be pickled.

    Attributes:
        threads: threads of PyTorch. None: PyTorch's default. Every worker has the same number, because it decides the
            order of floating-point sums, and therefore the last bits of a result.
        retry: keep the finished rows of earlier commits, and compute only failed rows.
        stall_seconds: seconds without a finished image after which a worker is killed. None: never.
    """

    make_stage: Callable[[], Stage]
    store: StageStore
    manifest: Path
    threads: int | None
    retry: bool = False
    stall_seconds: float | None = None

    def open(self, device: str) -> OpenJob:
        """Load the stage's models onto the device.

        Raises:
            DeviceLost: the GPU cannot be used, or its memory does not hold the models.
        """
        import torch

        from ovseg_batch.models.device import prepare

        torch.set_num_threads(self.threads or torch.get_num_threads())
        prepare(device)
        stage = self.make_stage()
        try:
            stage.setup(device)
        except RuntimeError as error:
            if device != "cpu" and (is_out_of_memory(error) or is_lost(error)):
                raise DeviceLost(f"loading the models failed: {first_line(error)}") from None
            raise
        return OpenJob(self, stage, Manifest.open(self.manifest))


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job whose models are loaded."""

    job: StageJob
    stage: Stage
    manifest: Manifest

    def compute(self, shard: int, crashed: Mapping[int, str], progress: Progress = lambda result: None) -> Commit:
        """Compute and commit one shard.

        Args:
            crashed: row → cause of its crashes. These rows fail without being read.
            progress: called with each result.
        """
        rows = self.manifest.read_shard(shard)
        return run_shard(self.stage, self.job.store, shard, rows, crashed, self.job.retry, progress)

    def probe(
        self,
        shard: int,
        known: Collection[int],
        first: int | None,
        begin: Callable[[int], None],
        progress: Progress,
    ) -> None:
        """Process the rows one at a time and discard the results, to find the row that crashes the worker.

        Args:
            known: rows to skip.
            first: the first row to process. None: in the order of the manifest.
            begin: called with the number of each row before it is processed.
            progress: called with each result.
        """
        rows = [row for row in self.manifest.read_shard(shard) if row.row not in known]
        rows.sort(key=lambda row: row.row != first)
        probe_shard(self.stage, self.job.store, shard, rows, begin, progress)
