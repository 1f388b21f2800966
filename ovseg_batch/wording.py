"""How a message names what the user can change: as the command line writes it, or as Python does.

The code below the command line and the Python API serves both, so a message is worded where the error is raised.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import yaml

_in_python: ContextVar[bool] = ContextVar("in_python", default=False)


@contextmanager
def for_python() -> Iterator[None]:
    """Word the messages for a caller in Python, in a `with` block or as a decorator."""
    token = _in_python.set(True)
    try:
        yield
    finally:
        _in_python.reset(token)


def called_from_python() -> bool:
    """Return whether the caller is a program in Python, not the command line."""
    return _in_python.get()


def spelled(command: str, python: str) -> str:
    """Return the form that the caller uses: an option of the command line, or an argument in Python."""
    return python if called_from_python() else command


def setting(key: str, value: Any) -> str:
    """Return how the caller sets a key: `--set KEY=VALUE`, or `settings={"KEY": VALUE}`."""
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    return spelled(f"--set {key}={text}", f'settings={{"{key}": {value!r}}}')
