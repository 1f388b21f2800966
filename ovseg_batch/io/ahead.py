"""Process the images of many rows in threads, in order and within a memory limit.

Decoders release the GIL, so threads run in parallel. The limit counts bytes, so the size of the images does not matter.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

from ovseg_batch import failpoints
from ovseg_batch.errors import FailureCode, RowError, is_out_of_memory
from ovseg_batch.io.images import decode, identified, open_content, read_content
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.remote import is_remote, shown
from ovseg_batch.types import ImageRow
from ovseg_batch.types.arrays import Pixels

T = TypeVar("T")

AHEAD = 64  # rows started before the current one; the memory limit is usually reached first
NETWORK_THREADS = 16  # threads for images from a network, which mostly wait
PEAK = 3  # bytes per pixel of a decoded image; Pillow briefly holds about twice as many


class _Budget:
    """Limits the bytes that files and images hold. The first unfinished row never waits: no deadlocks."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[int, int] = {}
        self._front = 0
        self._changed = threading.Condition()
        self._closed = False

    def reserve(self, index: int, cost: int) -> None:
        """Wait until a row may hold `cost` bytes in total."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or index == self._front or self._fits(index, cost))
            self._held[index] = cost

    def extend(self, index: int, cost: int) -> None:
        """Wait until a row may hold `cost` bytes in addition to those that it already holds."""
        self.reserve(index, self._held.get(index, 0) + cost)

    def _fits(self, index: int, cost: int) -> bool:
        return cost + sum(held for row, held in self._held.items() if row != index) <= self._limit

    def release(self, index: int) -> None:
        with self._changed:
            self._held.pop(index, None)
            self._front = index + 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def decode_ahead(
    rows: Sequence[ImageRow], threads: int, max_bytes: int, limits: Limits
) -> Iterator[tuple[ImageRow, Pixels | RowError]]:
    """Decode the images of rows in threads and yield them in order.

    Args: as `work_ahead`.

    Yields:
        each row, with its pixels (H, W, 3) uint8 or the `RowError` that it failed with.
    """
    return work_ahead(rows, lambda row, image: decode(image, shown(row.path)), threads, max_bytes, limits)


def work_ahead(
    rows: Sequence[ImageRow],
    work: Callable[[ImageRow, Image.Image], T],
    threads: int,
    max_bytes: int,
    limits: Limits,
    peak: int = PEAK,
) -> Iterator[tuple[ImageRow, T | RowError]]:
    """Call a function for the image of every row in threads, and yield the results in order.

    Args:
        rows: the rows whose images are opened.
        work: receives the row and the opened image, which is not decoded yet; may raise RowError.
        threads: number of threads; at least `NETWORK_THREADS` where images are behind URLs.
        max_bytes: bytes that waiting images may hold. A single larger image is still processed.
        limits: largest images that are read, and how URLs are fetched.
        peak: bytes per pixel of the result of `work`.

    Yields:
        each row, with the hash of its file's content, and the result of `work` or the `RowError` that the row failed
        with.
    """
    budget = _Budget(max_bytes)

    def do(index: int, row: ImageRow) -> tuple[ImageRow, T | RowError]:
        try:
            failpoints.reach(f"decode-{row.row}")
            content = read_content(row.path, limits, functools.partial(budget.reserve, index))
            row = identified(row, content)
            with open_content(content, shown(row.path), limits) as image:
                del content
                budget.extend(index, image.width * image.height * peak)
                return row, work(row, image)
        except RowError as error:
            return row, error.with_traceback(None)  # the frames of the traceback reference the file's bytes
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return row, RowError(FailureCode.OUT_OF_MEMORY, f"{shown(row.path)}: {type(error).__name__}: {error}")

    if any(is_remote(row.path) for row in rows):
        threads = max(threads, NETWORK_THREADS)
    yield from _in_order(rows, do, threads, budget)


def _in_order(rows: Sequence[ImageRow], do: Callable[[int, ImageRow], T], threads: int, budget: _Budget) -> Iterator[T]:
    """Call `do` in threads for the index of every row and the row, and yield the results in order."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[int, Future[T]]] = deque()
    todo = enumerate(rows)
    try:
        while True:
            while len(waiting) < AHEAD and (following := next(todo, None)) is not None:
                index, row = following
                waiting.append((index, pool.submit(do, index, row)))
            if not waiting:
                return
            index, future = waiting.popleft()
            yield future.result()
            del future
            budget.release(index)
    finally:
        budget.close()
        pool.shutdown(wait=True, cancel_futures=True)
