"""Batches that fit the memory of a device. They are halved when memory runs out, and never enlarged again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from ovseg_batch.errors import DeviceLost, is_opencv_error, is_out_of_memory
from ovseg_batch.models.faults import first_line, is_lost, release_memory

log = logging.getLogger(__name__)

T = TypeVar("T")

# with OpenCV's error, all classes that a computation raises
COMPUTATION_ERRORS = (RuntimeError, ValueError, MemoryError)


class BatchSize:
    """The number of items that a model computes at once.

    Args:
        items: initial size, at least 1.
        name: plural of the items for the log, such as `points` or `windows`.
    """

    def __init__(self, items: int, name: str = "items") -> None:
        self.items = items
        self._name = name

    def run(self, count: int, compute: Callable[[slice], T], charge: Callable[[Exception], T] | None = None) -> list[T]:
        """Compute `count` items in batches, in order.

        When memory runs out, the batch is computed again in halves, and later batches keep the smaller size. An item
        that does not fit alone is tried once more after cached memory is released. With `charge`, a batch for which the
        model raises is halved too, to find the item that fails.

        Args:
            count: the number of items.
            compute: takes the slice of a batch and returns its result.
            charge: returns the result of a single item that failed, from its error. None: the error is raised.

        Returns:
            One result per batch.

        Raises:
            DeviceLost: the GPU has become unusable for this process. No item fails.
            Exception: the error of `compute` for a single item, where `charge` is None.
        """
        results: list[T] = []
        start, limit, released = 0, self.items, False
        before, end = self.items, 0  # size before memory ran out, and end of the batch that failed
        while start < count:
            batch = slice(start, min(start + limit, count))
            size = batch.stop - start
            failure: Exception | None = None
            try:
                results.append(compute(batch))
            except Exception as error:
                if not (isinstance(error, COMPUTATION_ERRORS) or is_opencv_error(error)):
                    raise
                if is_lost(error):
                    raise DeviceLost(first_line(error)) from None
                if charge is None and not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # the traceback would keep the failed batch's tensors alive
            if failure is not None:
                short = is_out_of_memory(failure)
                if short and start >= end:
                    before, end = self.items, batch.stop
                if short and not (size == 1 and released):
                    self._shrink(size)
                    limit, released = self.items, size == 1
                    continue
                if short:
                    self.items = before  # the item fits at no size, so other items may still fit at the old size
                if charge is None:
                    raise failure
                if size > 1:
                    limit = size // 2
                    continue
                results.append(charge(failure))
            start, limit, released = batch.stop, self.items, False
        return results

    def _shrink(self, failed: int) -> None:
        """Release cached memory, and halve the size after a batch of `failed` items did not fit."""
        release_memory()
        smaller = max(1, failed // 2)
        if smaller < self.items:
            log.info("memory is short: %d %s at once instead of %d", smaller, self._name, self.items)
            self.items = smaller
