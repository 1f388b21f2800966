"""Worker processes with a stage's models, each watched by the process that started it.

A worker that dies (a decoder that aborts, the kernel's out-of-memory killer, a GPU that fails) is replaced, and its
shard is computed again. A shard that has killed `TRIES` workers is searched row by row. The row at which a worker dies
on its own is charged with `crashed`, and the shard is computed without it.

A GPU whose workers cannot start, or die one after the other, is left out.
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

TRIES = 2  # workers that may die on a shard before it is searched for the row to blame
STARTS = 2  # workers that may fail to start on a device before it is left out
DEATHS = 8  # times in a row, without a finished image, that a GPU may fail its workers before it is left out
WAKE_SECONDS = 1.0  # between two checks whether a worker stalls or the run is to stop


@dataclass(slots=True)
class _Slot:
    """A place for one worker on one device.

    Attributes:
        starts: workers in a row that did not start.
        failures: workers in a row that the device failed, with no image finished in between.
        charged: the rows charged for these failures, unless another device has failed at them too.
        fault: why no worker is started here any more.
    """

    device: str
    worker: Worker | None = None
    starts: int = 0
    failures: int = 0
    charged: list[tuple[Task, int]] = field(default_factory=list)
    fault: str | None = None

    def prove(self) -> None:
        """Record that the device has finished an image: the rows charged before are to blame, not the device."""
        self.failures = 0
        self.charged.clear()

    def blames(self, task: Task) -> bool:
        """Return whether the device has charged rows of the shard, and has finished no image since."""
        return any(blamed is task for blamed, _ in self.charged)

    def acquit(self, task: Task) -> bool:
        """Take back the charges against rows of a shard that `blames` speaks of, and return whether there were any."""
        rows = [row for blamed, row in self.charged if blamed is task]
        for row in rows:
            task.charged.pop(row, None)
        self.charged = [(blamed, row) for blamed, row in self.charged if blamed is not task]
        return bool(rows)


class WorkerPool:
    """The workers of one stage.

    Args:
        job: what they compute.
        devices: one entry per worker.
        stop: once set, no shard is begun.
        report: called with the shards in flight as images are finished.
    """

    def __init__(self, job: StageJob, devices: Sequence[str], stop: threading.Event, report: Report = ignore) -> None:
        self._job, self._stop, self._report = job, stop, report
        self._slots = [_Slot(device) for device in devices]
        self._todo: deque[Task] = deque()
        self._name = job.store.stage

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers. After an error they are killed; the shards they were computing are not committed.

        A worker that is still loading its models is killed as well: it has begun no shard.
        """
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.stop(at_once=error is not None or not slot.worker.ready)

    def flights(self) -> list[InFlight]:
        """Return the shards that are being computed."""
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        return [worker.flight for worker in workers if worker.task is not None and worker.flight is not None]

    def open(self) -> str | None:
        """Start a worker on every device, and wait until each is ready or its device is left out.

        Returns:
            Why no device is left, or None where one is.
        """
        for slot in self._slots:
            while slot.fault is None and not (slot.worker and slot.worker.ready):
                slot.worker = slot.worker or Worker(self._job, slot.device)
                self._receive(slot)
        faults = [slot.fault for slot in self._slots if slot.fault is not None]
        return "; ".join(faults) if len(faults) == len(self._slots) else None

    def run(self, shards: Sequence[int]) -> Iterator[Commit]:
        """Compute the shards, and yield each commit as it is made.

        Raises:
            NoDeviceLeft: no worker can start or stay alive on any device.
            OvsegError: workers die and no single image is to blame; or what a stage raises.
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
        """Return whether a worker has a shard to finish. One that loads its models has none once the run is to stop."""
        return worker.task is not None and (worker.ready or not self._stop.is_set())

    def _assign(self) -> None:
        """Give every idle worker a shard, and start a worker in an empty slot where a shard is left for it."""
        for slot in self._slots:
            if not self._todo or self._stop.is_set():
                return
            if slot.fault is None and (slot.worker is None or slot.worker.task is None):
                slot.worker = slot.worker or Worker(self._job, slot.device)
                slot.worker.give(self._next(slot), TRIES)
        if self._todo and all(slot.fault is not None for slot in self._slots):
            faults = "; ".join(dict.fromkeys(f"{slot.device}: {slot.fault}" for slot in self._slots))
            raise NoDeviceLeft(
                f"{self._name}: no device is left to compute on. {faults}. What is committed stays. "
                "`ovseg-batch doctor` checks the devices; then run again."
            )

    def _receive(self, slot: _Slot) -> Commit | None:
        """Take one message from a worker, or notice its death."""
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
                self._take_back(worker, first=not slot.blames(task))
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
        """Put a worker's shard in front of those that wait, or behind them."""
        if worker.task is not None:
            add = self._todo.appendleft if first else self._todo.append
            add(worker.task)
            worker.task = None

    def _next(self, slot: _Slot) -> Task:
        """Take the next shard for a slot. Rows that another device may have failed are searched again on this one."""
        task = self._todo.popleft()
        for other in self._slots:
            if other is not slot and other.acquit(task):
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
        """Decide what the death of a worker means for its shard, its image and its device.

        Args:
            cause: why it died.
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
        device = f" on {slot.device}" if is_gpu(slot.device) else ""
        where = f"{self._name}: a worker{device} died in shard {task.shard}"
        if worker.row is not None and lost and worker.row != task.suspect:
            task.suspect = worker.row
            log.warning("%s at row %d (%s); the row is tried once more", where, worker.row, cause)
        elif worker.row is not None:
            task.charged[worker.row] = f"the worker process died at this image: {cause}"
            if lost and worker.row not in task.accused:
                slot.charged.append((task, worker.row))
            task.accused.add(worker.row)
            log.warning("%s at row %d (%s); the row is charged with it", where, worker.row, cause)
        elif task.deaths < TRIES:
            task.deaths += 1
            log.warning("%s: %s; another takes over", where, cause)
        elif lost:  # no image is to blame, so the device is
            slot.failures = DEATHS
        else:
            raise OvsegError(
                f"{where}, {task.deaths + 1} times, and no single image is to blame: {cause}. What is committed stays. "
                "Give the run less to hold (run.batch_size, run.decode_bytes, run.workers), and run again."
            )
        if slot.failures >= DEATHS:
            for blamed in [task, *(blamed for blamed, _ in slot.charged)]:
                slot.acquit(blamed)
                blamed.deaths, blamed.searched, blamed.suspect = 0, False, None
            self._leave_out(slot, cause)

    def _leave_out(self, slot: _Slot, cause: str) -> None:
        slot.fault = cause
        log.warning("%s: %s is left out: %s", self._name, slot.device, cause)


def _pass(worker: Worker) -> Task:
    """Record that the row which a worker processed on its own did not end it, and return its shard."""
    task = worker.task
    assert task is not None
    if worker.row is not None:
        task.passed.add(worker.row)
        worker.row = None
    return task
