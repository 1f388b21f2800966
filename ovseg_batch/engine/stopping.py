"""Stop a command with Ctrl-C or SIGTERM.

While shards are computed, workers finish their shards after the first signal, and the second signal ends the run at
once. At any other time, the first signal ends the command at once, or when the import that runs has ended. A further
signal ends the process without cleanup. The next run removes leftovers, as after `kill -9`.

The command line imports this module first, so it must import little.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_INTERRUPTED = 130
IMPORT_POLL = 0.02  # seconds until an interruption is tried again that came during an import
IMPORT_CODE = "<frozen importlib._bootstrap>"  # file name in the frames of every import

Handler = Callable[[int, FrameType | None], None]


def _end_process(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(EXIT_INTERRUPTED)


def hold_signals() -> None:
    """Block signals until `Interruption.begin`. After the command, signals end the process. Used by the command line.

    A KeyboardInterrupt while modules are imported would end in a traceback.
    """
    for number in SIGNALS:
        signal.signal(number, _end_process)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class Interruption:
    """The handler of signals during a command.

    Attributes:
        requested: whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._ended = False

    def begin(self) -> None:
        """Deliver a signal that `hold_signals` has blocked."""
        if threading.current_thread() is threading.main_thread():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def end(self) -> None:
        """Make every further signal end the process, and drop an interruption that waits for an import."""
        self._ended = True
        signal.setitimer(signal.ITIMER_REAL, 0)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt at the first signal, and end the process at the second."""
        if self.requested or self._ended:
            _end_process(number, frame)
        self.requested = True
        _interrupt(number, frame)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, after an import that runs: modules may swallow all errors of optional imports."""
    if not _is_importing(frame):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, IMPORT_POLL)


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a frame is below an import."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_CODE:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Raise KeyboardInterrupt in this block at the first signal, and end the process at the second."""
    interruption = Interruption()
    with _handled_by(interruption.handle):
        try:
            yield interruption
        finally:
            interruption.end()


@contextlib.contextmanager
def stop_on_signal(
    stop: threading.Event, rest: Callable[[], str], act: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Set `stop` at the first signal; the second raises KeyboardInterrupt.

    Args:
        rest: returns the work that is finished before the run stops, such as "the shards in flight"; may be empty.
        act: called at the first signal.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            outer = before[signal.Signals(number)]
            if callable(outer):
                outer(number, frame)
            _interrupt(number, frame)
            return
        stop.set()
        act()
        # The signal may have interrupted a write of this thread, and streams do not allow a nested write.
        what = f"Stopping after {text}" if (text := rest()) else "Stopping"
        threading.Thread(target=log.warning, args=("%s; press Ctrl-C again to stop at once.", what)).start()

    with _handled_by(handle):
        yield


@contextlib.contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    """Handle signals in this block. In other threads than the main thread, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, one in previous.items():
            signal.signal(number, one)
