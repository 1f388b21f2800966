"""Workers: processes with a stage's models, each watched by the one that started it.

When one dies (a decoder that aborts, the kernel's out-of-memory killer), a fresh one takes over its shard. A shard that
has killed `TRIES` workers is searched row by row: the row at which a worker dies again is charged with `crashed`, and
the shard is computed without it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from ovseg_batch.engine.job import StageJob
from ovseg_batch.errors import OvsegError
from ovseg_batch.types import Commit

log = logging.getLogger(__name__)

TRIES = 2  # workers that may die on a shard before it is searched for the row to blame


@dataclass(slots=True)
class _Task:
    """A shard on its way: how many workers it has cost, and the rows found to blame."""

    shard: int
    deaths: int = 0
    charged: dict[int, str] = field(default_factory=dict)
    probed: bool = False

    @property
    def suspect(self) -> bool:
        return self.deaths >= TRIES and not self.probed


class _Worker:
    """One process with the stage's models, and a pipe to it."""

    def __init__(self, job: StageJob, device: str) -> None:
        context = multiprocessing.get_context("forkserver")  # CUDA and OpenMP do not survive a plain fork
        context.set_forkserver_preload(["ovseg_batch.stages.registry"])
        self.device = device
        self.task: _Task | None = None
        self.row: int | None = None  # the one being probed
        self.pipe, theirs = context.Pipe()
        surroundings = dict(os.environ)  # as they are now, not as they were when the fork server started
        self._process = context.Process(
            target=_serve, args=(job, device, theirs, surroundings, log.getEffectiveLevel())
        )
        with _without_main():
            self._process.start()
        theirs.close()

    def give(self, task: _Task) -> None:
        self.task, self.row = task, None
        with contextlib.suppress(BrokenPipeError):  # it has died; the pipe's end says so to whoever waits
            self.pipe.send((task.shard, task.charged, task.suspect))

    def cause_of_death(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        if code == -signal.SIGKILL:
            return "it was killed, most likely because memory ran out"
        return f"it died of {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"

    def stop(self, at_once: bool) -> None:
        if at_once:
            self._process.kill()
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self._process.join()
        self.pipe.close()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from importing the caller's script, which may start runs outside of `if __name__ == …`."""
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


class Crew:
    """The workers of one stage and who does what.

    Args:
        job: what they work on.
        devices: one entry per worker.
        stop: once set, no shard is begun.
    """

    def __init__(self, job: StageJob, devices: Sequence[str], stop: threading.Event) -> None:
        self._job, self._devices, self._stop = job, devices, stop
        self._workers: list[_Worker] = []
        self._name = job.store.stage

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send the workers home: at once when something went wrong, and what they are at is done again another day."""
        for worker in self._workers:
            worker.stop(at_once=error is not None)

    def run(self, shards: Sequence[int]) -> Iterator[Commit]:
        """Compute the shards, yielding each commit as it is made.

        Raises:
            OvsegError: workers die and no single image is to blame; or what a stage raises.
        """
        todo = deque(_Task(shard) for shard in shards)
        while len(self._workers) < min(len(self._devices), len(todo)):
            self._workers.append(_Worker(self._job, self._devices[len(self._workers)]))
        while True:
            for worker in self._workers:
                if worker.task is None and todo and not self._stop.is_set():
                    worker.give(todo.popleft())
            busy = {worker.pipe: worker for worker in self._workers if worker.task}
            if not busy:
                return
            for pipe in wait(list(busy)):
                commit = self._hear(busy[pipe], todo)  # type: ignore[index]
                if commit is not None:
                    yield commit

    def _hear(self, worker: _Worker, todo: deque[_Task]) -> Commit | None:
        """Take one message from a worker, or its death."""
        task = worker.task
        assert task is not None
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._bury(worker, task, todo)
            return None
        match kind:
            case "log":
                logging.getLogger(content.name).handle(content)
            case "row":
                worker.row = content
            case "probed":
                task.probed, worker.task = True, None
                todo.appendleft(task)
            case "error":
                raise content
            case _:
                worker.task = None
                commit: Commit = content
                return commit
        return None

    def _bury(self, worker: _Worker, task: _Task, todo: deque[_Task]) -> None:
        cause = worker.cause_of_death()
        where = f"{self._name}: a worker died in shard {task.shard}"
        if worker.row is not None:
            task.charged[worker.row] = f"the worker process died at this image: {cause}"
            log.warning("%s at row %d (%s); the row is charged with it", where, worker.row, cause)
        elif task.deaths >= TRIES:
            raise OvsegError(
                f"{where}, {task.deaths + 1} times, and no single image is to blame: {cause}. What is committed stays. "
                "Give the run less to hold (run.batch_size, run.decode_bytes, run.workers), and run again."
            )
        else:
            task.deaths += 1
            log.warning("%s: %s; another takes over", where, cause)
        todo.appendleft(task)
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = _Worker(self._job, worker.device)


class _Home(logging.Handler):
    """A worker's way to its parent, for results and for log records, which are shown there as the person asked for."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def send(self, kind: str, content: Any = None) -> None:
        with self.lock or contextlib.nullcontext():  # threads log too
            self._pipe.send((kind, content))

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        self.send("log", record)


def _serve(job: StageJob, device: str, pipe: Connection, surroundings: Mapping[str, str], level: int) -> None:
    """A worker's life: load, then shard after shard until told to go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and lets this worker finish its shard
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(surroundings)
    home = _Home(pipe)
    logger = logging.getLogger("ovseg_batch")
    logger.handlers, logger.propagate = [home], False
    logger.setLevel(level)
    try:
        opened = job.open(device)
        while (task := pipe.recv()) is not None:
            shard, charged, suspect = task
            if suspect:
                opened.probe(shard, charged, lambda row: home.send("row", row))
                home.send("probed")
            else:
                home.send("commit", opened.compute(shard, charged))
    except EOFError:
        return
    except Exception as error:
        home.send("error", _portable(error))


def _portable(error: Exception) -> Exception:
    """The error as it is when it survives the pipe; else one that tells what it said."""
    if isinstance(error, OvsegError | OSError):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return error
    return RuntimeError("in a worker:\n" + "".join(traceback.format_exception(error)))


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, and keep its models on the GPU."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)
