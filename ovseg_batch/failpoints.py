"""Named points in the code at which a test can kill the process or make the disk fail.

`OVSEG_FAILPOINTS` holds entries `point[:n][+][=action]`, separated by commas. The action happens the n-th time the
process reaches the point (default: the first; with `+`, every time from then on). Actions: `kill` (SIGKILL, the
default), the name of an error of the operating system (`ENOSPC`, `EIO`), `delay` (half a second), `abort`.

A point is written `rename` for any scope, or `dense.rename` for one scope. Scopes are the names of the stages,
`manifest` and `export`. If the variable is not set, a point costs one look-up in the environment.
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

#: The points of every output file, of an export, and of every shard.
FILE_POINTS = ("write", "fsync", "rename", "renamed")
EXPORT_POINTS = ("linked", "between")
SHARD_POINTS = ("row", "write", "data", "fsync", "rename", "renamed", "commit", "committed")

_scope: ContextVar[str] = ContextVar("scope", default="")
_seen: Counter[str] = Counter()


@contextlib.contextmanager
def within(scope: str) -> Iterator[None]:
    """Give the points in this context the additional name `scope.point`."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


def reach(point: str) -> None:
    """Reach a point: end the process, fail or wait if the environment requests it.

    Raises:
        OSError: the error that the environment names for this point.
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
