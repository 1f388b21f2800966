"""Work on the images of many rows in threads, in order and within a limit of memory.

Decoders release the GIL. A folder of panoramas needs no more memory than one of thumbnails.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ovseg_batch import failpoints
from ovseg_batch.errors import FailureCode, RowError, is_out_of_memory
from ovseg_batch.io.images import decode, identified, open_content, read_content
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.remote import is_remote, shown
from ovseg_batch.types import ImageRow

Array = np.ndarray[Any, Any]

T = TypeVar("T")

AHEAD = 64  # rows begun before the one in use; the bytes are what really bounds it
FETCHERS = 16  # threads where images come from a network; they wait most of the time
PEAK = 3  # bytes a pixel of a decoded image; Pillow holds about twice that for a moment


class _Budget:
    """Bytes that files and images may hold. The row in front always gets what it needs, so nothing can stand still."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[int, int] = {}
        self._front = 0
        self._changed = threading.Condition()
        self._closed = False

    def take(self, index: int, cost: int) -> None:
        """Wait until a row may hold so many bytes, which include those that it holds."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or index == self._front or self._fits(index, cost))
            self._held[index] = cost

    def add(self, index: int, cost: int) -> None:
        """Wait until a row may hold so many bytes more."""
        self.take(index, self._held.get(index, 0) + cost)

    def _fits(self, index: int, cost: int) -> bool:
        return cost + sum(held for row, held in self._held.items() if row != index) <= self._limit

    def give_back(self, index: int) -> None:
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
) -> Iterator[tuple[ImageRow, Array | RowError]]:
    """Decode the rows' images in threads, in order; each comes with its (H, W, 3) uint8 pixels or its `RowError`.

    Args: as `work_ahead`.
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
    """Do something with the rows' images in threads, and give what comes of it in order.

    Args:
        rows: what to open.
        work: gets the opened image, not decoded yet; may raise RowError.
        threads: how many do it; more are taken where images are behind URLs.
        max_bytes: what is held for images that wait to be used is no more than this; one larger image alone may be.
        limits: what may be read.
        peak: bytes a pixel that `work` leaves.

    Yields:
        each row, with the hash of its file's content, and what `work` made of it or the `RowError` to charge to it.
    """
    budget = _Budget(max_bytes)

    def do(index: int, row: ImageRow) -> tuple[ImageRow, T | RowError]:
        try:
            failpoints.reach(f"decode-{row.row}")
            content = read_content(row.path, limits, functools.partial(budget.take, index))
            row = identified(row, content)
            with open_content(content, shown(row.path), limits) as image:
                del content
                budget.add(index, image.width * image.height * peak)
                return row, work(row, image)
        except RowError as error:
            return row, error.with_traceback(None)  # its frames hold the file
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return row, RowError(FailureCode.OUT_OF_MEMORY, f"{shown(row.path)}: {type(error).__name__}: {error}")

    if any(is_remote(row.path) for row in rows):
        threads = max(threads, FETCHERS)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[int, Future[tuple[ImageRow, T | RowError]]]] = deque()
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
            budget.give_back(index)
    finally:
        budget.close()
        pool.shutdown(wait=True, cancel_futures=True)
