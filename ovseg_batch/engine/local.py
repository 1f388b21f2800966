"""Runs the missing shards of one stage on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from ovseg_batch.engine.crew import Crew
from ovseg_batch.engine.job import StageJob
from ovseg_batch.engine.stopping import stop_on_signal
from ovseg_batch.errors import Interrupted
from ovseg_batch.types import Commit


def run_stage(
    job: StageJob, shards: Sequence[int], devices: Sequence[str], in_process: bool = False
) -> Iterator[Commit]:
    """Compute the shards, one worker per entry of `devices`, yielding each commit as it is made.

    With `in_process` they are computed here on the first device, where nothing guards against a decoder that aborts.

    Raises:
        Interrupted: after the first SIGINT or SIGTERM, once the shards in flight are committed; a second stops at once.
        OvsegError: workers die and no single image is to blame.
    """
    with stop_on_signal() as stop:
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
