"""The progress of the shards that workers are computing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ovseg_batch.types import RowResult
from ovseg_batch.workdir.progress import duration


@dataclass(frozen=True, slots=True)
class InFlight:
    """A shard that is being computed and is not committed yet.

    Attributes:
        rows: images in the shard.
        done: finished images, including failed ones.
        failed: failed images.
        seconds: seconds since the computation began.
    """

    shard: int
    rows: int
    done: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """The number of images that are not finished."""
        return max(self.rows - self.done, 0)


Report = Callable[[InFlight], None]


def ignore(flight: InFlight) -> None:
    """Discard the report."""


class Tally:
    """Counts the images of a shard as they are finished.

    Args:
        shard: number of the shard.
        rows: images in the shard.
        report: called with the state at the beginning and after each image.
    """

    def __init__(self, shard: int, rows: int, report: Report) -> None:
        self._begun, self._report = time.monotonic(), report
        self.flight = InFlight(shard, rows)
        report(self.flight)

    def add(self, result: RowResult) -> None:
        """Count a finished image."""
        flight, seconds = self.flight, time.monotonic() - self._begun
        failed = flight.failed + (not result.ok)
        self.flight = dataclasses.replace(flight, done=flight.done + 1, failed=failed, seconds=seconds)
        self._report(self.flight)


def describe_rest(flights: Sequence[InFlight]) -> str:
    """Describe the images that are finished before a run stops, or return an empty text.

    Example: `the images in flight (at most 3 images, about 12 s)`.
    """
    if not flights:
        return ""
    left = sum(flight.left for flight in flights)
    text = f"at most {left} {'image' if left == 1 else 'images'}"
    if all(flight.done for flight in flights):
        text += f", about {duration(max(flight.seconds / flight.done * flight.left for flight in flights))}"
    return f"the images in flight ({text})"
