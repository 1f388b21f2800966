"""Cases with a seed each, run in a process that is watched from outside: what was tried, what held, what did not."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from ovseg_batch.engine.logs import send_logs_to
from tests.harness.job import PRELOADED

CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # sets the peak of the resident memory to the present size (proc(5))
MEBIBYTE = 1 << 20
LONGEST_TEXT = 4000  # characters that are kept of a violation


class Violation(Exception):
    """The product does not do what it promises. The text describes what it did."""


@dataclass(frozen=True, slots=True)
class Input:
    """The input of a case.

    Attributes:
        form: the kind of file.
        mutation: what was done to the file.
        name: file name for the copy that is kept of a violation.
        content: of the mutated file.
    """

    form: str
    mutation: str
    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the product did with an input: took it, refused it as promised, or violated a promise."""

    input: Input
    accepted: bool
    violation: str = ""


class Target(Protocol):
    """Files of one family, and what the product must do with them. It can be pickled."""

    name: str

    def draw(self, seed: int) -> Input:
        """Return the input that a seed decides."""

    def check(self, given: Input) -> bool:
        """Give an input to the product. Return whether it was accepted.

        Raises:
            Violation: the product broke a promise. Any other exception counts as one, too.
        """


@dataclass(slots=True)
class Count:
    """Cases of one kind of file."""

    accepted: int = 0
    refused: int = 0
    violations: int = 0

    @property
    def cases(self) -> int:
        return self.accepted + self.refused + self.violations


@dataclass(slots=True)
class Tally:
    """All cases of one target, by kind of file, and the violations with their seeds."""

    target: str
    counts: dict[str, Count] = field(default_factory=dict)
    violations: list[tuple[int, Outcome]] = field(default_factory=list)

    def add(self, seed: int, outcome: Outcome) -> None:
        """Count one more case."""
        count = self.counts.setdefault(outcome.input.form, Count())
        if outcome.violation:
            count.violations += 1
            self.violations.append((seed, outcome))
        elif outcome.accepted:
            count.accepted += 1
        else:
            count.refused += 1

    @property
    def cases(self) -> int:
        return sum(count.cases for count in self.counts.values())


def table(tallies: Sequence[Tally]) -> str:
    """Return the counts as a Markdown table, one line a kind of file."""
    lines = ["| family | kind of file | cases | accepted | refused | violations |", "|---|---|---|---|---|---|"]
    for tally in tallies:
        for form, count in sorted(tally.counts.items()):
            numbers = f"{count.cases:,} | {count.accepted:,} | {count.refused:,} | {count.violations:,}"
            lines.append(f"| {tally.target} | {form} | {numbers} |")
    return "\n".join(lines)


def watched(
    target: Target, seeds: Iterator[int], until: float, seconds: float, memory: int
) -> Iterator[tuple[int, Outcome]]:
    """Run cases one after the other in a process of their own, until a time or the end of the seeds.

    Args:
        until: time of `time.monotonic()` after which no case begins.
        seconds: that one case may take.
        memory: bytes by which the resident memory of the process may grow during a case.

    Yields:
        each seed, and the outcome of its case. A process that hangs or dies is a violation of the case.
    """
    worker = None
    try:
        for seed in seeds:
            if time.monotonic() > until:
                return
            if worker is None or not worker.alive:
                worker = _Worker(target, memory)
            yield seed, worker.run(seed, seconds)
    finally:
        if worker is not None:
            worker.end()


class _Worker:
    """A process that runs the cases of the seeds that it receives."""

    def __init__(self, target: Target, memory: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._target = target
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(target, theirs, memory), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it has started
        self.alive = True

    def run(self, seed: int, seconds: float) -> Outcome:
        """Run one case. A process that hangs is killed; `alive` says whether it can run another case."""
        self._pipe.send(seed)
        try:
            if self._pipe.poll(seconds):
                outcome: Outcome = self._pipe.recv()
                return outcome
            what = f"it hangs: no answer in {seconds:.0f} s"
        except (EOFError, ConnectionError):
            self._process.join()
            what = f"the process died with exit code {self._process.exitcode}"
        self.end()
        return Outcome(self._target.draw(seed), False, what)

    def end(self) -> None:
        """End the process."""
        self.alive = False
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(target: Target, pipe: Connection, memory: int) -> None:
    with tempfile.TemporaryFile() as errors:
        os.dup2(errors.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        send_logs_to(logging.StreamHandler(sys.stderr), logging.CRITICAL)  # as a command does, without own warnings
        pipe.send(None)
        while True:
            try:
                seed = pipe.recv()
            except EOFError:
                return
            outcome = measured(target, seed, memory)
            written = _take(errors.fileno())
            if written and not outcome.violation:
                outcome = replace(outcome, violation=f"on stderr: {written[:LONGEST_TEXT]}")
            pipe.send(outcome)


def measured(target: Target, seed: int, memory: int) -> Outcome:
    """Run one case in this process. Exceptions and memory above the limit are violations.

    Args:
        memory: bytes by which the resident memory may grow.
    """
    given = target.draw(seed)
    with contextlib.suppress(OSError):  # where this is not allowed, growth counts above the highest peak so far
        CLEAR_REFS.write_text(RESET_PEAK)
    before = _peak()
    accepted, violation = False, ""
    try:
        accepted = target.check(given)
    except Violation as error:
        violation = str(error)
    except Exception as error:
        violation = f"{type(error).__name__} instead of a typed error:\n{traceback.format_exc()}"
    grown = _peak() - before
    if not violation and grown > memory:
        violation = f"its memory grew by {grown // MEBIBYTE} MiB, more than {memory // MEBIBYTE} MiB"
    return Outcome(given, accepted, violation[-LONGEST_TEXT:])


def _peak() -> int:
    """Return the highest resident memory of this process since the last reset, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _take(errors: int) -> str:
    """Return what a file has received, and empty it."""
    sys.stderr.flush()
    text = os.pread(errors, os.fstat(errors).st_size, 0).decode("utf-8", "replace")
    os.ftruncate(errors, 0)
    os.lseek(errors, 0, os.SEEK_SET)
    return text


def save(folder: Path, target: str, seed: int, outcome: Outcome) -> Path:
    """Write the input of a violation and a description into a folder; return the path of the description."""
    folder.mkdir(parents=True, exist_ok=True)
    given = outcome.input
    (folder / f"{target}-{seed}-{given.name}").write_bytes(given.content)
    path = folder / f"{target}-{seed}.txt"
    text = f"{target}:{seed}, {given.form}, {given.mutation}\n\n{outcome.violation}\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
