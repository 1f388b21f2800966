"""Compute items in batches. Items that fail alone become failed results."""

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
    """Compute items in batches. An item that fails alone returns its error.

    Args:
        compute: returns one result per item.
        size: the batch size, which shrinks when memory runs out; None: all items at once.

    Returns:
        One entry per item: its result, or the `RowError` of its row.

    Raises:
        DeviceLost: the GPU has become unusable for this process. No item fails.
    """
    size = size or BatchSize(max(len(items), 1))
    batches = size.run(len(items), lambda batch: [*compute(items[batch])], _charge)
    return list(itertools.chain.from_iterable(batches))


def _charge(error: Exception) -> list[Any]:
    """Return the result of a single item whose computation raised."""
    if is_out_of_memory(error):
        return [RowError(FailureCode.OUT_OF_MEMORY, str(error))]
    return [RowError(FailureCode.MODEL, f"{type(error).__name__}: {error}")]
