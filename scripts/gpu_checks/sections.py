"""Run each section in a spawned process, so that a lost device or a hang ends that section only."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from gpu_checks.records import Check, Options, Record, Report

BUDGET = 480.0  # seconds for all sections
GRACE = 10  # seconds in which a process that was killed must be gone


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the checks.

    Attributes:
        module: the module of this package whose `run(report, options)` it is.
        title: what the section checks.
        seconds: after this time the section counts as hanging, if the time budget is `BUDGET`.
    """

    module: str
    title: str
    seconds: float


SECTIONS = {
    "environment": Section("environment", "the GPU and the software", 60),
    "masks": Section("masks", "presets and edit modes against CPU fp32, embedded models", 240),
    "models": Section("models", "full-size models with random weights against the CPU", 120),
    "resume": Section("resume", "two workers, kill -9 and resume", 180),
    "faults": Section("faults", "real out-of-memory and device-side assert", 120),
    "speed": Section("speed", "speed and recommended settings", 240),
}


def run_sections(
    names: list[str], options: Options, budget: float, begin: Callable[[str], None], receive: Callable[[Record], None]
) -> None:
    """Run sections one after the other within a time budget.

    Args:
        names: keys of `SECTIONS`.
        options: for every section; its folder is a subfolder of `options.folder`.
        budget: seconds for all sections. A section that does not start or end within it is reported as failed. The
            limits of single sections grow with it.
        begin: receives the name of a section before it starts.
        receive: receives every record.
    """
    end = time.monotonic() + budget
    for name in names:
        left = end - time.monotonic()
        begin(name)
        if left <= 0:
            receive(Check(name, name, "not run: time budget", "run", False))
            continue
        folder = options.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        started, own = time.monotonic(), SECTIONS[name].seconds * budget / BUDGET
        problem = run_section(name, replace(options, folder=folder), min(own, left), receive)
        spent = f"{time.monotonic() - started:.1f} s"
        if problem is None:
            receive(Check(name, "time", spent))
        else:
            overdue = "not completed: time budget" if left < own else "hangs"
            text = f"{overdue if problem == OVERDUE else problem} after {spent}; log: {folder / 'log.txt'}"
            receive(Check(name, name, text, "completed", False))


OVERDUE = "overdue"


def run_section(name: str, options: Options, seconds: float, receive: Callable[[Record], None]) -> str | None:
    """Run one section in its own process group.

    Returns:
        None if the section sent all of its records, otherwise `OVERDUE` or how its process ended.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, options, sender), name=f"gpu-check-{name}")
    with _group_of(process), contextlib.closing(receiver):
        sender.close()
        end = time.monotonic() + seconds
        while receiver.poll(max(0.0, end - time.monotonic())):
            try:
                record = receiver.recv()
            except EOFError:
                process.join(GRACE)
                return f"its process ended with {process.exitcode}"
            if record is None:
                process.join(GRACE)  # how it ends does not matter: a lost GPU may abort it
                return None
            receive(record)
        return OVERDUE


@contextlib.contextmanager
def _group_of(process: BaseProcess) -> Iterator[None]:
    """Start a process, and at the end kill it with everything that it started."""
    process.start()
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()  # it may not have made its group yet
        process.join(GRACE)


def _work(name: str, options: Options, sender: Connection) -> None:
    os.setpgid(0, 0)
    with (options.folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    report = Report(name, sender.send)
    with report.guarded(name):
        importlib.import_module(f"gpu_checks.{SECTIONS[name].module}").run(report, options)
    sender.send(None)
