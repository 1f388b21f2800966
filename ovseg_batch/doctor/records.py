"""The result of one check, which every module of this package returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its result, and advice if it is not ok.

    Attributes:
        name: name of the check, which is equal on every machine.
        found: result in one sentence.
        next: advice. Empty if the check is ok.
    """

    name: str
    status: Status
    found: str
    next: str = ""

    def to_record(self) -> dict[str, Any]:
        """Return the check as plain values, for JSON."""
        return asdict(self)


def ok(name: str, found: str) -> Check:
    """Return a check that passed."""
    return Check(name, "ok", found)


def warning(name: str, found: str, next: str) -> Check:
    """Return a check that found a problem which does not stop a run."""
    return Check(name, "warning", found, next)


def failed(name: str, found: str, next: str) -> Check:
    """Return a check that found a problem which stops a run."""
    return Check(name, "failed", found, next)


def one_line(error: BaseException) -> str:
    """Return the type and the first line of the message of an error's first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
