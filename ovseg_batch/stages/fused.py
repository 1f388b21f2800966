"""Dense and refine in one pass, without storing CLIP's logits, for runs whose logits would not fit on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ovseg_batch.stages.base import Stage, Upstream
from ovseg_batch.stages.dense import DenseStage
from ovseg_batch.stages.refine.plan import FusedPlan
from ovseg_batch.stages.refine.stage import RefineStage
from ovseg_batch.stages.resolved import Resolved
from ovseg_batch.stages.shard import finite
from ovseg_batch.stages.upstream import InMemoryShard
from ovseg_batch.types import ImageRow, RowResult

GROUP_ROWS, GROUP_BYTES = 32, 64 << 20  # images, or bytes of their arrays, that refine gets together


class FusedStage(FusedPlan, Stage):
    """Computes `dense` and `refine` in one pass; a row that dense fails keeps dense's reason."""

    def __init__(self, run: Resolved) -> None:
        super().__init__(run)
        self._dense_stage, self._refine_stage = DenseStage(run), RefineStage(run)

    def setup(self, device: str) -> None:
        self._dense_stage.setup(device)
        self._refine_stage.setup(device)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        waiting: list[RowResult] = []
        for result in map(finite, self._dense_stage.process(rows, upstream)):
            if result.code is not None:
                yield result
                continue
            waiting.append(result)
            held = sum(array.nbytes for one in waiting for array in one.arrays.values())
            if len(waiting) >= GROUP_ROWS or held > GROUP_BYTES:
                yield from self._refined(rows, waiting, upstream)
                waiting = []
        yield from self._refined(rows, waiting, upstream)

    def _refined(
        self, rows: Sequence[ImageRow], results: Sequence[RowResult], upstream: Mapping[str, Upstream]
    ) -> Iterator[RowResult]:
        passed = InMemoryShard(results)
        rows = [row for row in rows if row.row in passed]
        yield from self._refine_stage.process(rows, {**upstream, self._dense.name: passed})
