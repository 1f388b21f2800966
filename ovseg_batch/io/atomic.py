"""A file is either whole under its name or not there: write beside it, fsync, rename, fsync the folder."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ovseg_batch import failpoints

BUFFER = 1 << 20
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
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: str) -> bool:
    """Dead, and nobody has asked how: orphans stay so in a container whose first process is not an init."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in ("Z", "X")


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


class _File(io.FileIO):
    """A file whose every write is a failpoint."""

    def write(self, data: Any) -> int:
        failpoints.reach("write")
        return super().write(data)


def create(path: Path) -> io.BufferedWriter:
    """Open a new file. All that a run leaves behind is written through here, so that tests can fill the disk."""
    return io.BufferedWriter(_File(path, "w"), BUFFER)


def create_text(path: Path) -> io.TextIOWrapper:
    """The same for UTF-8 text, with newlines as they are given."""
    return io.TextIOWrapper(create(path), encoding="utf-8", newline="")


def publish(temporary: Path, path: Path) -> None:
    """Make the finished file `temporary` visible as `path`, so that a power cut keeps all of it or none."""
    failpoints.reach("fsync")
    _fsync(temporary, os.O_RDWR)
    failpoints.reach("rename")
    temporary.replace(path)
    failpoints.reach("renamed")
    fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically."""
    with atomic_path(path) as temporary, create(temporary) as file:
        file.write(content)


def fsync_folder(folder: Path) -> None:
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
