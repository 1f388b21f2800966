"""Locks on files, which end with the process that holds them. A file system without locks locks nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def shared(file: Path, create: Callable[[], None]) -> Iterator[None]:
    """Hold a file together with others, so that no one holds it alone.

    Args:
        create: creates the file's folder, which an exclusive holder may have deleted.
    """
    while True:
        create()
        try:
            lock = os.open(file, os.O_RDONLY | os.O_CREAT, 0o644)  # NFS gives a shared lock to readers alone
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        if os.fstat(lock).st_nlink:
            break
        os.close(lock)
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Wait until no other process holds the file, and hold it alone."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def if_free(file: Path) -> Iterator[bool]:
    """Hold the file alone if no other process holds it. Yields whether it is held now."""
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(lock)
