"""Runs the missing shards of one stage on this machine, and hears when the person wants it to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from ovseg_batch.engine.crew import Crew
from ovseg_batch.engine.job import StageJob
from ovseg_batch.errors import Interrupted
from ovseg_batch.types import Commit

log = logging.getLogger(__name__)


def run_stage(
    job: StageJob, shards: Sequence[int], devices: Sequence[str], in_process: bool = False
) -> Iterator[Commit]:
    """Compute the shards, one worker per entry of `devices`, yielding each commit as it is made.

    With `in_process` they are computed here on the first device, where nothing guards against a decoder that aborts.

    Raises:
        Interrupted: after the first SIGINT or SIGTERM, once the shards in flight are committed; a second stops at once.
        OvsegError: workers die and no single image is to blame.
    """
    with _stop_on_signal() as stop:
        if in_process:
            yield from _here(job, shards, devices[0], stop)
        else:
            with Crew(job, devices, stop) as crew:
                yield from crew.run(shards)
        if stop.is_set():
            raise Interrupted


def _here(job: StageJob, shards: Sequence[int], device: str, stop: threading.Event) -> Iterator[Commit]:
    opened = job.open(device)
    for shard in shards:
        if stop.is_set():
            return
        yield opened.compute(shard, {})


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        log.warning("stopping after the shard in flight; once more to stop at once")
        stop.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
