"""Places where a test can make the process die or the disk fail, so that "anywhere" is a list and not a hope.

`OVSEG_FAILPOINTS` holds entries `point[:n][+][=action]`, separated by commas. The action happens the n-th time the
process comes to the point (default the first; with `+` every time from then on). Actions: `kill` (SIGKILL, the
default), the name of an error the operating system could give there (`ENOSPC`, `EIO`), `delay` (half a
second), `abort`.

A point is written `rename`, wherever it happens, or `dense.rename`, inside that scope. Scopes are the stages' names,
`manifest` and `export`. Unset, a point costs one look-up in the environment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar

VARIABLE = "OVSEG_FAILPOINTS"
DELAY = 0.5  # seconds

#: What every file passes that a run leaves behind, and what every shard passes.
FILE_POINTS = ("write", "fsync", "rename", "renamed")
EXPORT_POINTS = ("linked", "between")
SHARD_POINTS = ("row", "write", "data", "fsync", "rename", "renamed", "commit", "committed")

_scope: ContextVar[str] = ContextVar("scope", default="")
_seen: Counter[str] = Counter()


@contextlib.contextmanager
def within(scope: str) -> Iterator[None]:
    """Points reached in this context also answer to `scope.point`."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


def reach(point: str) -> None:
    """Come to a point; die, fail or wait here if the environment says so.

    Raises:
        OSError: the one that the failpoint names.
    """
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    names = {point, f"{_scope.get()}.{point}"}
    _seen.update(names)
    for entry in wanted.split(","):
        where, _, action = entry.strip().partition("=")
        name, _, count = where.removesuffix("+").partition(":")
        due = _seen[name] - int(count or 1)
        if name in names and (due == 0 or (due > 0 and where.endswith("+"))):
            _act(action, name)


def _act(action: str, name: str) -> None:
    if action in ("", "kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "abort":
        os.abort()
    elif action == "delay":
        time.sleep(DELAY)
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number), f"failpoint {name}")
