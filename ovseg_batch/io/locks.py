"""Locks on files. They end with their process. On a file system without locks, every lock is granted."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def shared(file: Path, create: Callable[[], None]) -> Iterator[None]:
    """Hold a shared lock on a file: other processes can share it, and none can hold it exclusively.

    Args:
        file: the file that is locked; created if it does not exist.
        create: creates the folder of the file, which an exclusive holder may have deleted.
    """
    while True:
        create()
        try:
            # NFS grants shared locks only on descriptors that are open for reading
            lock = os.open(file, os.O_RDONLY | os.O_CREAT, 0o644)
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
    """Wait until no other process holds the file, and hold an exclusive lock on it."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def if_free(file: Path) -> Iterator[bool]:
    """Hold an exclusive lock on the file if no other process holds it. Yields whether the lock was granted."""
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
