"""Records of the checks: what a section measured, the limit, and whether it passed."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """What every section receives.

    Attributes:
        folder: an existing folder for this section's files.
        quick: minimum sizes, and the embedded models instead of full-size ones.
        device: the GPU, as `run.device` takes it.
    """

    folder: Path
    quick: bool = False
    device: str = "cuda"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a section's table. A line without a limit is a measurement and always passes."""

    section: str
    name: str
    value: str
    limit: str = ""
    passed: bool = True


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that the measurements recommend."""

    key: str
    value: str


Record = Check | Setting


class Report:
    """Sends the records of one section.

    Args:
        section: name of the section.
        send: receives each record as soon as it exists.
    """

    def __init__(self, section: str, send: Callable[[Record], None]) -> None:
        self._section, self._send = section, send

    def check(self, name: str, value: str, limit: str, passed: bool) -> None:
        """Send a check."""
        self._send(Check(self._section, name, value, limit, passed))

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Send a check that passes from `limit` upwards. NaN fails."""
        self.check(name, f"{value:.5g}", f"≥ {limit:g}", value >= limit)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Send a check that passes up to `limit`. NaN fails."""
        self.check(name, f"{value:.5g}", f"≤ {limit:g}", value <= limit)

    def measured(self, name: str, value: str) -> None:
        """Send a measurement."""
        self._send(Check(self._section, name, value))

    def recommend(self, key: str, value: object) -> None:
        """Send a recommended setting."""
        self._send(Setting(key, str(value)))

    @contextlib.contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Turn an error in this context into a failed check of that name. The traceback goes to stderr."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.check(name, reason(error), "no error", False)


def reason(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:200]
