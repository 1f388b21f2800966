"""A pool of worker processes with the models of a stage. The parent process monitors them.

A worker that dies (because of an aborting decoder, the kernel's out-of-memory killer or a failing GPU) is replaced, and
its shard is computed again. If `TRIES` workers have died at a shard, it is searched row by row. A row that crashes a
worker again fails with `crashed`, and the shard is computed without it.

A GPU is not used any more if its workers cannot start or die repeatedly.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import TracebackType

from ovseg_batch.engine.devices import is_gpu
from ovseg_batch.engine.flight import InFlight, Report, ignore
from ovseg_batch.engine.job import StageJob
from ovseg_batch.engine.process import Task, Worker
from ovseg_batch.errors import NoDeviceLeft, OvsegError
from ovseg_batch.types import Commit

log = logging.getLogger(__name__)

TRIES = 2  # workers that may die at a shard before it is searched for the row that crashes them
STARTS = 2  # failed starts of workers after which a device is not used any more
DEATHS = 8  # failures in a row without a finished image after which a GPU is not used any more
WAKE_SECONDS = 1.0  # interval of checks for stalled workers and stop requests


@dataclass(slots=True)
class _Slot:
    """A slot for one worker on one device.

    Attributes:
        starts: failed starts in a row.
        failures: failures of the device in a row, without a finished image in between.
        crashed: rows that were recorded as crashed in these failures, without those that crashed on other devices too.
        fault: reason why the device is not used any more.
    """

    device: str
    worker: Worker | None = None
    starts: int = 0
    failures: int = 0
    crashed: list[tuple[Task, int]] = field(default_factory=list)
    fault: str | None = None

    def prove(self) -> None:
        """Record that the device has finished an image, so earlier crashes were caused by their rows."""
        self.failures = 0
        self.crashed.clear()

    def has_unproven_crashes(self, task: Task) -> bool:
        """Return whether rows of the shard crashed on the device and it has finished no image since."""
        return any(other is task for other, _ in self.crashed)

    def retract_crashes(self, task: Task) -> bool:
        """Remove the unproven crashes of a shard's rows. Return whether there were any."""
        rows = [row for other, row in self.crashed if other is task]
        for row in rows:
            task.crashed.pop(row, None)
        self.crashed = [(other, row) for other, row in self.crashed if other is not task]
        return bool(rows)


class IdleWorkers:
    """The GPU workers that have finished a stage and wait for the next one."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def __enter__(self) -> IdleWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop(at_once=False)

    def add(self, worker: Worker) -> None:
        """Keep a worker that computes no shard."""
        self._workers.append(worker)

    def take(self, device: str) -> Worker:
        """Return a worker on a device: one that is idle, or a new one."""
        for worker in self._workers:
            if worker.device == device:
                self._workers.remove(worker)
                return worker
        return Worker(device)


class WorkerPool:
    """The workers of one stage.

    Args:
        job: the job of the workers.
        devices: one entry per worker.
        stop: once it is set, no further shard starts.
        report: called with the shards in flight when images are finished.
        idle: workers of earlier stages. At the end, it gets the GPU workers of this one. None: they end.
    """

    def __init__(
        self,
        job: StageJob,
        devices: Sequence[str],
        stop: threading.Event,
        report: Report = ignore,
        idle: IdleWorkers | None = None,
    ) -> None:
        self._job, self._stop, self._report, self._idle = job, stop, report, idle
        self._slots = [_Slot(device) for device in devices]
        self._todo: deque[Task] = deque()
        self._name = job.store.stage

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers. After an error, they are killed, and their shards are not committed.

        A worker that is still loading its models is also killed, because it has begun no shard.
        """
        for slot in self._slots:
            worker = slot.worker
            if worker is None:
                continue
            if self._idle is not None and error is None and worker.ready and is_gpu(slot.device):
                self._idle.add(worker)
            else:
                worker.stop(at_once=error is not None or not worker.ready)

    def flights(self) -> list[InFlight]:
        """Return the shards that are being computed."""
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        return [worker.flight for worker in workers if worker.task is not None and worker.flight is not None]

    def open(self) -> str | None:
        """Start a worker on every device. Wait until each is ready or its device is excluded.

        Returns:
            The reason why no device is left, or None if there is one.
        """
        for slot in self._slots:
            while slot.fault is None and not (slot.worker and slot.worker.ready):
                self._start(slot)
                self._receive(slot)
        faults = [slot.fault for slot in self._slots if slot.fault is not None]
        return "; ".join(faults) if len(faults) == len(self._slots) else None

    def run(self, shards: Sequence[int]) -> Iterator[Commit]:
        """Compute the shards, and yield each commit as it is made.

        Raises:
            NoDeviceLeft: no worker can start or stay alive on any device.
            OvsegError: workers die and no single image is the cause, or a stage raises it.
        """
        self._todo = deque(Task(shard) for shard in shards)
        while True:
            self._assign()
            busy = {slot.worker.pipe: slot for slot in self._slots if slot.worker and self._is_awaited(slot.worker)}
            if not busy:
                return
            for pipe in wait(list(busy), WAKE_SECONDS):
                commit = self._receive(busy[pipe])  # type: ignore[index]
                if commit is not None:
                    yield commit
            if self._job.stall_seconds is not None:
                self._end_stalled(self._job.stall_seconds)

    def _is_awaited(self, worker: Worker) -> bool:
        """Return whether a worker has a shard to finish. After a stop request, workers that load models have none."""
        return worker.task is not None and (worker.ready or not self._stop.is_set())

    def _assign(self) -> None:
        """Assign shards to idle workers, and start workers in empty slots while shards are left."""
        for slot in self._slots:
            if not self._todo or self._stop.is_set():
                return
            if slot.fault is None and (slot.worker is None or slot.worker.task is None):
                self._start(slot).assign(self._next(slot), TRIES)
        if self._todo and all(slot.fault is not None for slot in self._slots):
            faults = "; ".join(dict.fromkeys(f"{slot.device}: {slot.fault}" for slot in self._slots))
            raise NoDeviceLeft(
                f"{self._name}: no device is left to compute on. {faults}. Committed shards are kept. "
                "`ovseg-batch doctor` checks the devices. Then run the same command again."
            )

    def _start(self, slot: _Slot) -> Worker:
        """Return the worker of a slot. If the slot is empty, it gets one, which begins to load the models."""
        if slot.worker is None:
            slot.worker = Worker(slot.device) if self._idle is None else self._idle.take(slot.device)
            slot.worker.load(self._job)
        return slot.worker

    def _receive(self, slot: _Slot) -> Commit | None:
        """Handle one message of a worker, or its death."""
        worker = slot.worker
        if worker is None:
            return None
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._handle_death(slot, worker, worker.cause_of_death(), lost=False)
            return None
        worker.last_message = time.monotonic()
        match kind:
            case "log":
                logging.getLogger(content.name).handle(content)
            case "ready":
                worker.ready, slot.starts = True, 0
            case "row":
                _pass(worker)
                worker.row = content
            case "flight":
                if content.done > content.failed:
                    slot.prove()
                worker.flight = content
                if not worker.searching:
                    self._report(content)
            case "searched":
                task = _pass(worker)
                task.searched = True
                self._take_back(worker, first=not slot.has_unproven_crashes(task))
            case "lost":
                worker.end()
                self._handle_death(slot, worker, content, lost=True)
            case "error":
                raise content
            case _:
                worker.task = worker.flight = None
                commit: Commit = content
                return commit
        return None

    def _take_back(self, worker: Worker, first: bool = True) -> None:
        """Return a worker's shard to the front or the end of the queue."""
        if worker.task is not None:
            add = self._todo.appendleft if first else self._todo.append
            add(worker.task)
            worker.task = None

    def _next(self, slot: _Slot) -> Task:
        """Remove the next shard for a slot from the queue. Rows with unproven crashes are searched again."""
        task = self._todo.popleft()
        for other in self._slots:
            if other is not slot and other.retract_crashes(task):
                task.searched, task.suspect = False, None
        return task

    def _end_stalled(self, seconds: float) -> None:
        for slot in self._slots:
            worker = slot.worker
            if worker is not None and worker.task is not None and time.monotonic() - worker.last_message > seconds:
                worker.end()
                minutes = f"{seconds / 60:g} minutes (run.stall_minutes)"
                self._handle_death(
                    slot, worker, f"it finished no image for {minutes} and was killed", lost=is_gpu(slot.device)
                )

    def _handle_death(self, slot: _Slot, worker: Worker, cause: str, lost: bool) -> None:
        """Handle the death of a worker: update its shard, the current row and its device.

        Args:
            cause: description of the cause.
            lost: whether the GPU may be the cause.
        """
        task = worker.task
        slot.worker = None
        if worker.flight is not None:
            self._report(dataclasses.replace(worker.flight, done=0, failed=0))
        self._take_back(worker)
        if not worker.ready or task is None:
            slot.starts += 1
            log.warning("%s: a worker did not start on %s: %s", self._name, slot.device, cause)
            if slot.starts >= STARTS:
                self._leave_out(slot, cause)
            return
        slot.failures += lost
        self._find_cause(slot, task, worker.row, cause, lost)
        if slot.failures >= DEATHS:
            for other in [task, *(other for other, _ in slot.crashed)]:
                slot.retract_crashes(other)
                other.deaths, other.searched, other.suspect = 0, False, None
            self._leave_out(slot, cause)

    def _find_cause(self, slot: _Slot, task: Task, row: int | None, cause: str, lost: bool) -> None:
        """Attribute the death of a worker to the row that it was computing, to its shard or to the device.

        Raises:
            OvsegError: too many workers died in the shard, and neither a row nor the device is the cause.
        """
        device = f" on {slot.device}" if is_gpu(slot.device) else ""
        where = f"{self._name}: a worker{device} died in shard {task.shard}"
        if row is not None and lost and row != task.suspect:
            task.suspect = row
            log.warning("%s at row %d (%s); the row is tried once more", where, row, cause)
        elif row is not None:
            task.crashed[row] = f"the worker process died at this image: {cause}"
            if lost and row not in task.ever_crashed:
                slot.crashed.append((task, row))
            task.ever_crashed.add(row)
            log.warning("%s at row %d (%s); the row fails as crashed", where, row, cause)
        elif task.deaths < TRIES:
            task.deaths += 1
            log.warning("%s: %s; another takes over", where, cause)
        elif lost:  # no single row crashes it, so the device is the cause
            slot.failures = DEATHS
        else:
            raise OvsegError(
                f"{where}, {task.deaths + 1} times, and no single image is the cause: {cause}. "
                "Committed shards are kept. "
                "Lower run.batch_size, run.decode_bytes or run.workers, then run the same command again."
            )

    def _leave_out(self, slot: _Slot, cause: str) -> None:
        slot.fault = cause
        log.warning("%s: %s is left out: %s", self._name, slot.device, cause)


def _pass(worker: Worker) -> Task:
    """Record that the current row of a search did not crash the worker. Return the shard."""
    task = worker.task
    assert task is not None
    if worker.row is not None:
        task.passed.add(worker.row)
        worker.row = None
    return task
