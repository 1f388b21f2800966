"""One worker process: how it is started, what it computes, and how it ends.

Workers on a GPU are spawned, since CUDA does not survive a fork. Workers on a CPU are forked from a server that has
imported the stages and started no thread.
"""

from __future__ import annotations

import contextlib
import functools
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
from ovseg_batch.engine.job import StageJob
from ovseg_batch.engine.logs import OWN, send_logs_to
from ovseg_batch.engine.stopping import SIGNALS
from ovseg_batch.errors import DeviceLost, OvsegError
from ovseg_batch.models.faults import first_line, is_lost

# The fork server imports this. No module of it may query CUDA when it is imported.
PRELOADED = ["ovseg_batch.stages.implementations"]
LOST = 70  # exit status of a worker that has lost its GPU
END_SECONDS = 10.0  # to wait for a killed process; one that hangs in a driver may not end
STOP_SECONDS = 60.0  # for a worker to end by itself
PROGRESS_SECONDS = 1.0  # between two messages about finished images


@dataclass(slots=True)
class Task:
    """A shard to compute.

    Attributes:
        deaths: workers that died on it.
        charged: row → why: rows to blame.
        passed: rows that the search has processed without a death.
        accused: rows that have ever been charged.
        suspect: a row at which one worker died on its own; it is tried once more.
        searched: whether every row has been charged or has passed.
    """

    shard: int
    deaths: int = 0
    charged: dict[int, str] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)
    accused: set[int] = field(default_factory=set)
    suspect: int | None = None
    searched: bool = False


class Worker:
    """One process with the stage's models, and a pipe to it.

    Attributes:
        task: what it computes; None: it waits.
        row: the row that it processes on its own.
        flight: how far its shard is; None: its computation has not begun.
        searching: whether it searches its shard for the row to blame.
        ready: whether its models are loaded.
        last_message: when its last message arrived, by `time.monotonic()`.
    """

    def __init__(self, job: StageJob, device: str) -> None:
        self.task: Task | None = None
        self.row: int | None = None
        self.flight: InFlight | None = None
        self.searching = False
        self.ready = False
        self.last_message = time.monotonic()
        context = _context(device)
        device, own = own_device(device, os.environ)
        environment = {**os.environ, **own}  # as it is now, not as it was when the fork server started
        self.pipe, theirs = context.Pipe()
        level = logging.getLogger(OWN).getEffectiveLevel()
        self._process: Any = context.Process(target=_serve, args=(job, device, theirs, environment, level))  # type: ignore[attr-defined]
        with _without_main():
            with _spawning(own):
                (self._process.start if own else forkserver.ensure_running)()
            if not own:
                self._fork()
        theirs.close()

    def _fork(self) -> None:
        """Start the process. This waits for the fork server's imports, so it must not hold signals back."""
        try:
            self._process.start()
        except (EOFError, ConnectionError) as error:
            raise OvsegError(
                "The process that starts the workers has died, most likely because memory ran out. What is committed "
                "stays. Free some memory, and run the same command again."
            ) from error

    def give(self, task: Task, tries: int) -> None:
        """Send a shard; one on which `tries` workers have died is searched first."""
        self.task, self.row, self.flight, self.last_message = task, None, None, time.monotonic()
        self.searching = search = task.deaths >= tries and not task.searched
        with contextlib.suppress(BrokenPipeError):  # the process has died, which the pipe's end reports
            self.pipe.send((task.shard, task.charged, task.passed if search else None, task.suspect))

    def cause_of_death(self) -> str:
        """Wait for the process, and say how it ended."""
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
        """End the process: now, or after its shard."""
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


@contextlib.contextmanager
def _spawning(environment: Mapping[str, str]) -> Iterator[None]:
    """Change this process's environment and signal mask while another is spawned, which inherits both.

    It must see its own GPU before it imports anything, and a Ctrl-C must not end it before it ignores signals. The fork
    server needs this as well: it ignores signals only after it has imported the stages.
    """
    before = {name: os.environ.get(name) for name in environment}
    resource_tracker.ensure_running()  # it would be started below, and unblocks the signals then
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
    """Sends a worker's results and log records to its parent."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe
        self._lock = threading.RLock()  # threads log too
        self._flight: InFlight | None = None

    def send(self, kind: str, content: Any = None) -> None:
        """Send a message, after the finished images that are not reported yet."""
        with self._lock:
            self.flush()
            self._send(kind, content)

    def report(self, flight: InFlight) -> None:
        """Keep how far a shard is for the next `flush`; its beginning is sent at once."""
        with self._lock:
            self._flight = flight
            if flight.done == 0:
                self.flush()

    def flush(self) -> None:
        """Send how far the shard is if that has changed."""
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
        if record.exc_info:  # which cannot be pickled
            record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
        self.send("log", record)


def _serve(job: StageJob, device: str, pipe: Connection, environment: Mapping[str, str], level: int) -> None:
    """Load the models, then compute shard after shard until the parent ends the pipe."""
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
        opened = job.open(device)
        handler.send("ready")
        while (task := handler.receive()) is not None:
            shard, charged, passed, suspect = task
            tally = Tally(shard, opened.manifest.rows_of(shard), handler.report)
            if passed is not None:
                begin = functools.partial(handler.send, "row")
                opened.probe(shard, passed.union(charged), suspect, begin, tally.add)
                handler.send("searched")
            else:
                handler.send("commit", opened.compute(shard, charged, tally.add))
    except _ParentEnded:
        return
    except Exception as error:
        if is_gpu(device) and is_lost(error):
            with contextlib.suppress(_ParentEnded):
                handler.send("lost", f"the GPU failed: {first_line(error)}")
            os._exit(LOST)  # an orderly end would use the GPU, and may hang
        with contextlib.suppress(_ParentEnded):
            handler.send("error", _portable(error))


def _portable(error: Exception) -> Exception:
    """Return the error if it can be pickled, otherwise a RuntimeError with its traceback."""
    if isinstance(error, OvsegError | OSError | DeviceLost):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return error
    return RuntimeError("in a worker:\n" + "".join(traceback.format_exception(error)))


def _die_with_parent() -> None:
    """End this process when its parent has ended: it would wait for ever, and keep its models on the GPU."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)
