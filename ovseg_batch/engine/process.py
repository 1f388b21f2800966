"""A worker process: start, computation and end.

Workers on a GPU are spawned, because CUDA does not work after a fork. Their start takes seconds, so they serve the jobs
of several stages. Workers on a CPU are forked from a server that has imported the stages and has started no thread.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

from ovseg_batch.engine.devices import is_gpu, own_device
from ovseg_batch.engine.flight import InFlight, Tally
from ovseg_batch.engine.job import OpenJob, StageJob
from ovseg_batch.engine.logs import OWN, send_logs_to
from ovseg_batch.engine.stopping import SIGNALS
from ovseg_batch.errors import DeviceLost, OvsegError
from ovseg_batch.models.faults import first_line, is_lost, release_memory

PRELOADED = ["ovseg_batch.engine.preloaded"]  # modules that the fork server imports
LOST = 70  # exit status of a worker that has lost its GPU
END_SECONDS = 10.0  # longest wait for a killed process, which may hang in a driver
STOP_SECONDS = 60.0  # longest wait for a worker to end by itself
PROGRESS_SECONDS = 1.0  # interval of messages about finished images


@dataclass(slots=True)
class Task:
    """A shard to compute.

    Attributes:
        deaths: number of workers that died while computing it.
        crashed: row → cause. Rows that crashed a worker.
        passed: rows that the search has processed without a crash.
        ever_crashed: all rows that have been in `crashed`.
        suspect: a row that crashed one worker in the search, and is tried once more.
        searched: whether every row has crashed or passed.
    """

    shard: int
    deaths: int = 0
    crashed: dict[int, str] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)
    ever_crashed: set[int] = field(default_factory=set)
    suspect: int | None = None
    searched: bool = False


class Worker:
    """A process that computes shards on a device, and a pipe to it.

    Attributes:
        task: the shard that it computes. None: it is idle.
        row: the row that it processes in a search.
        flight: progress of its shard. None: its computation has not begun.
        searching: whether it searches its shard for the row that crashes workers.
        ready: whether its models are loaded.
        last_message: time of its last message, by `time.monotonic()`.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.task: Task | None = None
        self.row: int | None = None
        self.flight: InFlight | None = None
        self.searching = False
        self.ready = False
        self.last_message = time.monotonic()
        context = _context(device)
        device, own = own_device(device, os.environ)
        environment = {**os.environ, **own}  # the present environment, not that of the start of the fork server
        self.pipe, theirs = context.Pipe()
        level = logging.getLogger(OWN).getEffectiveLevel()
        args = (device, theirs, environment, level)
        self._process: Any = context.Process(target=_serve, args=args)  # type: ignore[attr-defined]
        with _without_main():
            with _spawning(own):
                (self._process.start if own else forkserver.ensure_running)()
            if not own:
                self._fork()
        theirs.close()

    def _fork(self) -> None:
        """Start the process. This waits for the imports of the fork server, so signals must not be blocked."""
        try:
            self._process.start()
        except (EOFError, ConnectionError) as error:
            raise OvsegError(
                "The process that starts the workers has died, most likely because memory ran out. Committed shards "
                "are kept. Free some memory, and run the same command again."
            ) from error

    def load(self, job: StageJob) -> None:
        """Send a job to the worker, which drops the models of its last job and loads those of this one."""
        self.ready, self.flight, self.last_message = False, None, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # the process has died, which the end of the pipe reports
            self.pipe.send(job)

    def assign(self, task: Task, tries: int) -> None:
        """Send a shard to the worker. A shard on which `tries` workers have died is searched first."""
        self.task, self.row, self.flight, self.last_message = task, None, None, time.monotonic()
        self.searching = search = task.deaths >= tries and not task.searched
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send((task.shard, task.crashed, task.passed if search else None, task.suspect))

    def cause_of_death(self) -> str:
        """Wait for the process, and return how it ended."""
        self._process.join(END_SECONDS)
        code = self._process.exitcode or 0
        self.pipe.close()
        if code == -signal.SIGKILL:
            return "it was killed, most likely because memory ran out"
        return f"it died of {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join(END_SECONDS)
        self.pipe.close()

    def stop(self, at_once: bool) -> None:
        """End the process, at once or after its shard."""
        if at_once:
            self.end()
            return
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self._process.join(STOP_SECONDS)
        self.end()


def _context(device: str) -> BaseContext:
    if is_gpu(device):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Prevent a new process from importing the caller's script, which may start runs outside of `if __name__ == …`."""
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


@contextlib.contextmanager
def _spawning(environment: Mapping[str, str]) -> Iterator[None]:
    """Change the environment and the signal mask of this process while it spawns another, which inherits both.

    The new process must have its `CUDA_VISIBLE_DEVICES` before its first import, and Ctrl-C must not end it before it
    ignores signals. The fork server needs the same, because it ignores signals only after importing the stages.
    """
    before = {name: os.environ.get(name) for name in environment}
    resource_tracker.ensure_running()  # if it started below, it would unblock the signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _ParentEnded(Exception):
    """The parent no longer reads what its worker sends."""


class _PipeHandler(logging.Handler):
    """Sends the results and log records of a worker to its parent."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe
        self._lock = threading.RLock()  # other threads log as well
        self._flight: InFlight | None = None

    def send(self, kind: str, content: Any = None) -> None:
        """Send a message. Finished images that are not reported yet are sent first."""
        with self._lock:
            self.flush()
            self._send(kind, content)

    def report(self, flight: InFlight) -> None:
        """Store the progress of a shard for the next `flush`. The start of a shard is sent at once."""
        with self._lock:
            self._flight = flight
            if flight.done == 0:
                self.flush()

    def flush(self) -> None:
        """Send the progress of the shard if it has changed."""
        with self._lock:
            if self._flight is not None:
                self._send("flight", self._flight)
                self._flight = None

    def receive(self) -> Any:
        """Return the parent's next message."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _ParentEnded from error

    def _send(self, kind: str, content: Any) -> None:
        try:
            self._pipe.send((kind, content))
        except OSError as error:
            raise _ParentEnded from error

    def keep_flushing(self) -> None:
        """Send finished images every `PROGRESS_SECONDS` until the parent has ended."""
        with contextlib.suppress(_ParentEnded):
            while True:
                time.sleep(PROGRESS_SECONDS)
                self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:  # cannot be pickled
            record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
        self.send("log", record)


def _serve(device: str, pipe: Connection, environment: Mapping[str, str], level: int) -> None:
    """Load the models of each job that the parent sends, and compute its shards, until the parent closes the pipe."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    handler = _PipeHandler(pipe)
    send_logs_to(handler, level)
    threading.Thread(target=handler.keep_flushing, daemon=True).start()
    try:
        for module in PRELOADED:  # a process that was not forked has not imported them
            importlib.import_module(module)
        opened: OpenJob | None = None
        while (message := handler.receive()) is not None:
            if isinstance(message, StageJob):
                opened = None
                release_memory()
                opened = message.open(device)
                handler.send("ready")
            elif opened is not None:
                _compute(opened, message, handler)
    except _ParentEnded:
        return
    except Exception as error:
        if is_gpu(device) and is_lost(error):
            with contextlib.suppress(_ParentEnded):
                handler.send("lost", f"the GPU failed: {first_line(error)}")
            os._exit(LOST)  # a normal exit would use the GPU, and may hang
        with contextlib.suppress(_ParentEnded):
            handler.send("error", _portable(error))


def _compute(
    opened: OpenJob, message: tuple[int, dict[int, str], set[int] | None, int | None], handler: _PipeHandler
) -> None:
    """Compute a shard, or search it for the row that crashes workers, and send the result."""
    shard, crashed, passed, suspect = message
    tally = Tally(shard, opened.manifest.rows_of(shard), handler.report)
    if passed is None:
        handler.send("commit", opened.compute(shard, crashed, tally.add))
        return
    begin = functools.partial(handler.send, "row")
    opened.probe(shard, passed.union(crashed), suspect, begin, tally.add)
    handler.send("searched")


def _portable(error: Exception) -> Exception:
    """Return the error if it can be pickled, otherwise a RuntimeError with its traceback."""
    if isinstance(error, OvsegError | OSError | DeviceLost):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return error
    return RuntimeError("in a worker:\n" + "".join(traceback.format_exception(error)))


def _die_with_parent() -> None:
    """End this process when its parent ends. Otherwise it would wait for ever, with its models on the GPU."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)
