"""A file is either whole under its name or not there: write beside it, fsync, rename, fsync the folder."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import errno
import hashlib
import io
import os
import re
import shutil
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from ovseg_batch import failpoints
from ovseg_batch.errors import OvsegError
from ovseg_batch.types import FileRecord

BUFFER = 1 << 20
TEMPORARY_SUFFIX = ".tmp"
SHORT = 60  # bytes of a file's name in that of its temporary file
ABANDONED = 24 * 3600  # seconds; a file in use is written to more often
WRITERS = 4  # threads that wait for the disk
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
DISK_ERRORS = DISK_FULL | {errno.EFBIG, errno.EIO, errno.EROFS}
NAME_ERRORS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL}


def temporary_path(path: Path) -> Path:
    """Return a hidden name beside `path`, unique to the call, so that two processes cannot tear each other's file.

    It names its machine and process, so that `owner_is_gone` can tell leftovers of a crash from work in progress. Of a
    long name it has the beginning, because a file system bounds the whole.
    """
    return path.with_name(f".{_short(path.name)}.{uuid.uuid4().hex}.{_machine()}@{os.getpid()}{TEMPORARY_SUFFIX}")


def _short(name: str) -> str:
    while len(os.fsencode(name)) > SHORT:
        name = name[:-1]
    return name


def _machine() -> str:
    """Return the host's name and the namespace of process numbers, which differs between containers of one host."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname()}-{namespace}"


def delete(path: Path) -> None:
    """Delete a file, a folder with all in it, or a link. What a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def owner_is_gone(temporary: Path) -> bool:
    """Return whether the process that made a temporary file no longer lives.

    Of a process elsewhere nothing is known. It counts as gone once the file is `ABANDONED` seconds old.
    """
    place, at, pid = temporary.name.removesuffix(TEMPORARY_SUFFIX).rpartition("@")
    if not at or not pid.isdecimal():
        return False
    if not place.endswith(f".{_machine()}"):
        try:
            return time.time() - temporary.lstat().st_mtime > ABANDONED
        except FileNotFoundError:
            return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return _is_zombie(pid)


def remove_leftovers(temporaries: Iterable[Path]) -> int:
    """Delete the temporary files and folders that no living process of this host owns; how many there were."""
    gone = [path for path in temporaries if owner_is_gone(path)]
    for path in gone:
        delete(path)
    return len(gone)


def temporaries_in(folder: Path) -> Iterator[Path]:
    """The temporary files directly in a folder of ours."""
    return folder.glob(f".*{TEMPORARY_SUFFIX}")


def temporaries_of(path: Path) -> list[Path]:
    """The temporary files of one file, among whatever else lies beside it."""
    own = re.compile(
        rf"\.{re.escape(_short(path.name))}\.[0-9a-f]{{32}}\.[^/]*{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL
    )
    try:
        with os.scandir(path.parent) as entries:
            return [Path(entry.path) for entry in entries if own.fullmatch(entry.name)]
    except OSError:
        return []


def _is_zombie(pid: str) -> bool:
    """Return whether a process is a zombie. Orphans stay zombies in a container whose first process is no init."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in ("Z", "X")


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Add the folder to an error of the disk, which names no file when it comes from writing to an open one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in DISK_ERRORS:
            error.filename = str(folder)
        raise


@contextlib.contextmanager
def atomic_path(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes `path`, durably; on error it is removed.

    Args:
        beside: a folder on the same disk for the temporary file; None: the folder of `path`.
    """
    folder = path.parent if beside is None else beside
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(folder / path.name)
    try:
        with naming(folder):
            yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _File(io.FileIO):
    """A file whose every write is a failpoint."""

    def write(self, data: Any) -> int:
        failpoints.reach("write")
        with naming(Path(str(self.name)).parent):
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


class FileBatch:
    """Files that appear together: written and made durable by threads under passing names, then renamed at once.

    Args:
        root: what the files' names are relative to; made when the first is renamed.
        parts: a folder on the same disk for what is not finished.
    """

    def __init__(self, root: Path, parts: Path, threads: int = WRITERS) -> None:
        self._root, self._parts = root, parts
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._room = threading.BoundedSemaphore(2 * threads)
        self._begun: dict[str, tuple[Path, Future[FileRecord]]] = {}

    def can_be(self, name: str) -> bool:
        """Whether a file can have this name here: it leads nowhere else, is not too long, and is not taken."""
        if (
            name in self._begun
            or name.startswith("/")
            or "\0" in name
            or not {"", ".", ".."}.isdisjoint(name.split("/"))
        ):
            return False
        path = self._root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return not stat.S_ISDIR(os.lstat(path).st_mode)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in NAME_ERRORS:
                return False
            raise

    def add(self, name: str, content: bytes) -> None:
        """Begin to write a file. Waits while too many are under way.

        Raises:
            OvsegError: the batch has a file of that name.
        """
        if name in self._begun:
            raise OvsegError(f"Two files cannot both be called {self._root / name}.")
        self._parts.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(self._parts / str(len(self._begun)))
        self._room.acquire()
        work = contextvars.copy_context().run
        future = self._pool.submit(work, self._write, name, temporary, content)
        future.add_done_callback(lambda _: self._room.release())
        self._begun[name] = (temporary, future)

    @staticmethod
    def _write(name: str, temporary: Path, content: bytes) -> FileRecord:
        with create(temporary) as file:
            file.write(content)
        failpoints.reach("fsync")
        _fsync(temporary, os.O_RDWR)
        return dataclasses.replace(file_record(temporary, temporary.parent), path=name)

    def finish(self) -> None:
        """Wait until everything is on the disk. Raises what went wrong."""
        for _, future in self._begun.values():
            future.result()

    def publish(self) -> list[FileRecord]:
        """Give the files their names; their records, in the order they were added."""
        self.finish()
        folders = set()
        for name, (temporary, _) in self._begun.items():
            path = self._root / name
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            failpoints.reach("rename")
            temporary.replace(path)
            failpoints.reach("renamed")
        for folder in sorted(folders):
            fsync_folder(folder)
        return [future.result() for _, future in self._begun.values()]

    def __enter__(self) -> FileBatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for temporary, _ in self._begun.values():
            temporary.unlink(missing_ok=True)


def file_record(path: Path, root: Path) -> FileRecord:
    """Size and BLAKE2b (16 bytes) of the file as it reads back from the file system."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileRecord(path.relative_to(root).as_posix(), path.stat().st_size, digest.hexdigest())


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
        with naming(path if path.is_dir() else path.parent):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
