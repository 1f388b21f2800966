"""Overlap CPU work for one image with accelerator work for another image."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Before = TypeVar("Before")
During = TypeVar("During")
After = TypeVar("After")

AHEAD = 2  # images before and after the one on the accelerator
MOST_PIXELS = 50_000_000  # pixels of concurrent images; a larger image is processed alone


def in_three_steps(
    items: Iterable[Item],
    before: Callable[[Item], Before],
    during: Callable[[Before], During],
    after: Callable[[During], After],
    pixels: Callable[[Item], int],
    overlapping: bool,
) -> Iterator[After]:
    """Process every item in three steps, and yield the results in order.

    Args:
        before, after: steps that run in separate threads.
        during: step that runs in the calling thread.
        pixels: returns the pixels of an item, which bound the memory.
        overlapping: False: one item after the other, one step after the other, no threads. So it is on a CPU, where
            the model would lose what the threads gain.
    """
    if not overlapping:
        for item in items:
            yield after(during(before(item)))
        return
    coming: deque[tuple[Future[Before], int]] = deque()
    going: deque[tuple[Future[After], int]] = deque()
    with ThreadPoolExecutor(1, "before") as first, ThreadPoolExecutor(1, "after") as last:

        def advance() -> None:
            future, size = coming.popleft()
            going.append((last.submit(after, during(future.result())), size))

        for item in items:
            size = pixels(item)
            while True:
                too_many = sum(held for _, held in (*coming, *going)) + size > MOST_PIXELS
                if len(coming) > AHEAD:
                    advance()
                elif going and (len(going) > AHEAD or going[0][0].done()):
                    yield going.popleft()[0].result()
                elif too_many and coming:  # rather than wait for `after`, while the accelerator would be idle
                    advance()
                elif too_many and going:
                    yield going.popleft()[0].result()
                else:
                    break
            coming.append((first.submit(before, item), size))
        while coming:
            advance()
        while going:
            yield going.popleft()[0].result()
