"""Batches that shrink when memory runs out, and the charge for an item that cannot be computed even alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ovseg_batch.errors import FailureCode, RowError, is_out_of_memory
from ovseg_batch.models.batches import BatchSize

T = TypeVar("T")
R = TypeVar("R")


def split_on_failure(
    compute: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], size: BatchSize | None = None
) -> list[R | RowError]:
    """Compute items in batches, and charge those that cannot be computed even alone.

    Args:
        compute: returns one result per item.
        size: the batch size, which shrinks when memory runs out; None: all items at once.

    Returns:
        One entry per item: its result, or the `RowError` to charge to its row.

    Raises:
        DeviceLost: the GPU does not work in this process any more. No item is charged.
    """
    size = size or BatchSize(max(len(items), 1))
    batches = size.run(len(items), lambda batch: [*compute(items[batch])], _charge)
    return list(itertools.chain.from_iterable(batches))


def _charge(error: Exception) -> list[Any]:
    """Return the result of a single item whose computation raised."""
    if is_out_of_memory(error):
        return [RowError(FailureCode.OUT_OF_MEMORY, str(error))]
    return [RowError(FailureCode.MODEL, f"{type(error).__name__}: {error}")]
