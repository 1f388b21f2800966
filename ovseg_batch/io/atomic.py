"""A file is either whole under its name or not there: write beside it, fsync, rename, fsync the folder."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path`, unique to the call, so two processes cannot tear each other's file.

    It names its host and process, so that `owner_is_gone` can tell leftovers of a crash from work in progress.
    """
    owner = f"{socket.gethostname()}@{os.getpid()}"
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{owner}{TEMPORARY_SUFFIX}")


def owner_is_gone(temporary: Path) -> bool:
    """True when the process that made the temporary file ran on this host and no longer lives."""
    host, at, pid = temporary.name.removesuffix(TEMPORARY_SUFFIX).rpartition("@")
    if not at or not host.endswith(f".{socket.gethostname()}") or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes `path`, durably; on error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Make the finished file `temporary` visible as `path`, so that a power cut keeps all of it or none."""
    _fsync(temporary, os.O_RDWR)
    temporary.replace(path)
    fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fsync_folder(folder: Path) -> None:
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
