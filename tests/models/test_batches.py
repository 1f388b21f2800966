"""Batch sizes that shrink when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.stages.splitting import split_on_failure


def test_a_batch_size_halves_and_stays() -> None:
    sizes: list[int] = []
    batch = BatchSize(8)

    def compute(part: slice) -> int:
        sizes.append(part.stop - part.start)
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return int(part.start)

    assert batch.run(8, compute) == [0, 2, 4, 6]
    assert (sizes, batch.items) == ([8, 4, 2, 2, 2, 2], 2)
    sizes.clear()
    assert batch.run(3, compute) == [0, 2]
    assert sizes == [2, 1]


def test_an_item_that_never_fits_does_not_shrink_the_batches_of_the_others() -> None:
    batch = BatchSize(4)

    def compute(part: slice) -> list[int]:
        items = [*range(8)][part]
        if 5 in items:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return items

    assert batch.run(8, compute, lambda error: []) == [[0, 1, 2, 3], [4], [], [6, 7]]
    assert batch.items == 4
    with pytest.raises(torch.OutOfMemoryError):
        batch.run(8, compute)
    assert batch.items == 4


def test_an_item_is_tried_again_after_cached_memory_is_released() -> None:
    tried = 0

    def compute(part: slice) -> str:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert BatchSize(1).run(1, compute) == ["done"]


def test_what_opencv_raises_is_charged_to_its_item() -> None:
    """Its error is no RuntimeError. Without memory it has a code of its own."""
    pixel = np.zeros((1, 1), np.uint8)

    def compute(sides: Sequence[int]) -> list[int]:
        return [cv2.resize(pixel, (side, side), interpolation=cv2.INTER_NEAREST).size for side in sides]

    fine, short, refused = split_on_failure(compute, [2, 1 << 20, -1])
    assert fine == 4
    assert isinstance(short, RowError) and short.code is FailureCode.OUT_OF_MEMORY
    assert isinstance(refused, RowError) and refused.code is FailureCode.MODEL
