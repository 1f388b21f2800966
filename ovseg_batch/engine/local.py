"""Compute the missing shards of one stage on this machine."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Generator, Iterator, Sequence

from ovseg_batch.engine.flight import InFlight, Report, Tally, describe_rest, ignore
from ovseg_batch.engine.job import StageJob
from ovseg_batch.engine.stopping import stop_on_signal
from ovseg_batch.engine.workers import IdleWorkers, WorkerPool
from ovseg_batch.errors import DeviceLost, Interrupted
from ovseg_batch.models.faults import first_line, is_lost
from ovseg_batch.types import Commit

log = logging.getLogger(__name__)


def run_stage(
    job: StageJob,
    shards: Sequence[int],
    devices: Sequence[str],
    in_process: bool = False,
    report: Report = ignore,
    idle: IdleWorkers | None = None,
) -> Iterator[Commit]:
    """Compute the shards, one worker per entry of `devices`, and yield each commit as it is made.

    With `in_process`, this process computes them on the first device. It is not protected from decoders that abort. If
    its GPU fails, a worker process computes the remaining shards.

    Args:
        report: called with the shards in flight when images are finished. If a worker dies, its shard starts again from
            0.
        idle: GPU workers that are kept from stage to stage.

    Raises:
        Interrupted: after the first SIGINT or SIGTERM, once the shards in flight are committed; a second stops at once.
        OvsegError: no device is left, or workers die and no single image is the cause.
    """
    stop = threading.Event()
    left = (yield from _here(job, shards, devices[0], stop, report)) if in_process else shards
    if left:
        pool = WorkerPool(job, devices[:1] if in_process else devices, stop, report, idle)
        with stop_on_signal(stop, lambda: describe_rest(pool.flights())), pool:
            yield from pool.run(left)
    if stop.is_set():
        raise Interrupted


def _here(
    job: StageJob, shards: Sequence[int], device: str, stop: threading.Event, report: Report
) -> Generator[Commit, None, Sequence[int]]:
    """Compute the shards in this process. Return the remaining shards if its GPU fails.

    On the command line, a signal while the models load raises KeyboardInterrupt, because no shard has begun. The number
    of threads is restored at the end, because PyTorch has one number for the whole process.
    """
    import torch

    done, threads = 0, torch.get_num_threads()
    flight: InFlight | None = None

    def note(one: InFlight) -> None:
        nonlocal flight
        flight = one
        report(one)

    try:
        opened = job.open(device)
        with stop_on_signal(stop, lambda: describe_rest([flight] if flight is not None else [])):
            for shard in shards:
                if stop.is_set():
                    break
                commit = opened.compute(shard, {}, Tally(shard, opened.manifest.rows_of(shard), note).add)
                done, flight = done + 1, None
                yield commit
    except (DeviceLost, RuntimeError) as error:
        if not is_lost(error):
            raise
        log.warning("%s failed in this process: %s; a worker process takes over", device, first_line(error))
        if flight is not None:
            report(dataclasses.replace(flight, done=0, failed=0))
        return shards[done:]
    finally:
        torch.set_num_threads(threads)
    return []
