"""Runs the missing shards of one stage on this machine: in this process, or in one process per worker.

Only shard numbers travel to the workers; each opens the manifest and its upstream itself and commits its own shards.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ovseg_batch.io.manifest import Manifest
from ovseg_batch.stages.base import Stage, run_shard
from ovseg_batch.store import StageStore
from ovseg_batch.types import Commit

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The person asked to stop; every shard begun has been finished and committed."""


@dataclass(frozen=True, slots=True)
class StageJob:
    """All a worker needs to run shards of one stage; picklable, so that a spawned process can take it."""

    make_stage: Callable[[], Stage]
    store: StageStore
    upstream: dict[str, StageStore]
    manifest: Path

    def open(self, device: str) -> Callable[[int], Commit]:
        """Load the stage's models and return the function that computes and commits one shard."""
        stage = self.make_stage()
        stage.setup(device)
        manifest = Manifest.open(self.manifest)
        return lambda shard: run_shard(stage, self.store, shard, manifest.read_shard(shard), self.upstream)


def run_stage(job: StageJob, shards: Sequence[int], devices: Sequence[str]) -> Iterator[Commit]:
    """Compute the shards, one worker per entry of `devices`, yielding each commit as it is made.

    Raises:
        Interrupted: after the first SIGINT or SIGTERM, once the shards in flight are committed; a second stops at once.
    """
    with _stop_on_signal() as stop:
        commits = _in_process(job, shards, devices[0], stop) if len(devices) == 1 else _pool(job, shards, devices, stop)
        yield from commits
        if stop.is_set():
            raise Interrupted


def _in_process(job: StageJob, shards: Sequence[int], device: str, stop: threading.Event) -> Iterator[Commit]:
    compute = job.open(device)
    for shard in shards:
        if stop.is_set():
            return
        yield compute(shard)


_compute: Callable[[int], Commit] | None = None


def _start_worker(job: StageJob, devices: multiprocessing.Queue[str]) -> None:
    global _compute
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and lets this worker finish its shard
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _compute = job.open(devices.get())


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, and keep its models on the GPU."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_in_worker(shard: int) -> Commit:
    assert _compute is not None
    return _compute(shard)


def _pool(job: StageJob, shards: Sequence[int], devices: Sequence[str], stop: threading.Event) -> Iterator[Commit]:
    context = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process
    queue: multiprocessing.Queue[str] = context.Queue()
    for device in devices:
        queue.put(device)
    with ProcessPoolExecutor(len(devices), context, _start_worker, (job, queue)) as pool:
        todo = iter(shards)
        running: set[Future[Commit]] = set()
        while True:
            while not stop.is_set() and len(running) < len(devices):
                shard = next(todo, None)
                if shard is None:
                    break
                running.add(pool.submit(_run_in_worker, shard))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


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
