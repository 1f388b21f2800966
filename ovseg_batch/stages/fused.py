"""Dense and refine in one pass, without storing CLIP's logits, for runs whose logits would not fit on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ovseg_batch.stages.base import Shape, Upstream
from ovseg_batch.stages.dense import DenseStage
from ovseg_batch.stages.refine.plan import FusedPlan
from ovseg_batch.stages.refine.stage import RefineStage
from ovseg_batch.stages.resolved import Resolved
from ovseg_batch.stages.shard import finite
from ovseg_batch.types import ImageRow, RowResult

Array = np.ndarray[Any, Any]

GROUP_ROWS, GROUP_BYTES = 32, 64 << 20  # at so many images, or so much of them, refine takes over


class FusedStage(FusedPlan):
    """Computes `dense` and `refine` in one pass; a row that dense fails keeps dense's reason."""

    def __init__(self, run: Resolved) -> None:
        super().__init__(run)
        self._dense_stage, self._refine_stage = DenseStage(run), RefineStage(run)

    def setup(self, device: str) -> None:
        self._dense_stage.setup(device)
        self._refine_stage.setup(device)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        waiting: list[RowResult] = []
        for said in map(finite, self._dense_stage.process(rows, upstream)):
            if said.code is not None:
                yield said
                continue
            waiting.append(said)
            held = sum(array.nbytes for one in waiting for array in one.arrays.values())
            if len(waiting) >= GROUP_ROWS or held > GROUP_BYTES:
                yield from self._refined(rows, waiting, upstream)
                waiting = []
        yield from self._refined(rows, waiting, upstream)

    def _refined(
        self, rows: Sequence[ImageRow], said: Sequence[RowResult], upstream: Mapping[str, Upstream]
    ) -> Iterator[RowResult]:
        passed = _Passed(said)
        few = [row for row in rows if row.row in passed]
        yield from self._refine_stage.process(few, {**upstream, self._dense.name: passed})


class _Passed(Upstream):
    """The results of the dense stage for some rows, in place of a committed shard."""

    def __init__(self, results: Sequence[RowResult]) -> None:
        self._said = {result.row: result for result in results}

    def __contains__(self, row: int) -> bool:
        return row in self._said

    def failure(self, row: int) -> str | None:
        return None

    def values(self, row: int) -> dict[str, Any]:
        return dict(self._said[row].values)

    def array(self, row: int, name: str, shape: Shape) -> Array:
        return self._said[row].arrays[name]

    def arrays(self, row: int) -> dict[str, Array]:
        return dict(self._said[row].arrays)

    def result(self, row: ImageRow) -> RowResult:
        return self._said[row.row]

    def close(self) -> None:
        pass
