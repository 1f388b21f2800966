"""Write files atomically: write a temporary file, fsync it, rename it, fsync the folder."""

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
LONGEST_STEM = 60  # bytes of a file's name that the name of its temporary file starts with
ABANDONED = 24 * 3600  # seconds without a write after which a temporary file of another host counts as abandoned
WRITERS = 4  # threads that wait for the disk
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
DISK_ERRORS = DISK_FULL | {errno.EFBIG, errno.EIO, errno.EROFS}
NAME_ERRORS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL}


def temporary_path(path: Path) -> Path:
    """Return a hidden path in the folder of `path`. It is unique to the call.

    The name contains the host and the process, so that `owner_is_gone` can tell leftovers of a crash from files in use.
    Long names are shortened, because file systems limit the length of a name.
    """
    return path.with_name(f".{_short(path.name)}.{uuid.uuid4().hex}.{_machine()}@{os.getpid()}{TEMPORARY_SUFFIX}")


def _short(name: str) -> str:
    while len(os.fsencode(name)) > LONGEST_STEM:
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
    """Delete a file, a folder with its content, or a link. The target of a link is kept."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def owner_is_gone(temporary: Path) -> bool:
    """Return whether the process that created a temporary file has ended.

    Processes of other hosts cannot be checked. They count as ended once the file is `ABANDONED` seconds old.
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
    """Delete the temporary files and folders whose process has ended. Return their number."""
    abandoned = [path for path in temporaries if owner_is_gone(path)]
    for path in abandoned:
        delete(path)
    return len(abandoned)


def temporaries_in(folder: Path) -> Iterator[Path]:
    """Return the temporary files directly in a folder that this program wrote."""
    return folder.glob(f".*{TEMPORARY_SUFFIX}")


def temporaries_of(path: Path) -> list[Path]:
    """Return the temporary files of one file. Other files in its folder are ignored."""
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
    """Add the folder to disk errors. Errors of writing to an open file do not name a file."""
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
        path: the final path.
        beside: folder on the same file system for the temporary file. None: the folder of `path`.
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
    """Open a new binary file. Every output of a run is opened here, so that tests can simulate a full disk."""
    return io.BufferedWriter(_File(path, "w"), BUFFER)


def create_text(path: Path) -> io.TextIOWrapper:
    """Open a new UTF-8 text file. Newlines are written as given."""
    return io.TextIOWrapper(create(path), encoding="utf-8", newline="")


def publish(temporary: Path, path: Path) -> None:
    """Rename the finished file `temporary` to `path` durably: after a power cut, either all of it exists or none."""
    failpoints.reach("fsync")
    _fsync(temporary, os.O_RDWR)
    failpoints.reach("rename")
    temporary.replace(path)
    failpoints.reach("renamed")
    fsync_folder(path.parent)


class FileBatch:
    """Files that appear together. Threads write and fsync them under temporary names; `publish` then renames them.

    Args:
        root: folder that the names of the files are relative to. It is created with the first rename.
        parts: folder on the same file system for unfinished files.
        threads: number of threads that write.
    """

    def __init__(self, root: Path, parts: Path, threads: int = WRITERS) -> None:
        self._root, self._parts = root, parts
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._room = threading.BoundedSemaphore(2 * threads)
        self._begun: dict[str, tuple[Path, Future[FileRecord]]] = {}

    def accepts(self, name: str) -> bool:
        """Return whether a file can have this name: it stays below `root`, is not too long, and is not in use."""
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
        """Start to write a file. Waits while too many files are being written.

        Raises:
            OvsegError: the batch already has a file of that name.
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
        """Wait until every file is on the disk. Raises the first error of a write."""
        for _, future in self._begun.values():
            future.result()

    def publish(self) -> list[FileRecord]:
        """Rename the files to their final names. Return their records in the order in which they were added."""
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
    """Read a file back and return its record: size and BLAKE2b hash (16 bytes)."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileRecord(path.relative_to(root).as_posix(), path.stat().st_size, digest.hexdigest())


def damage(root: Path, file: FileRecord) -> str:
    """Return how a file differs from its record. Empty if it does not."""
    try:
        found = file_record(root / file.path, root)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if found.bytes != file.bytes:
        return f"{found.bytes} bytes, {file.bytes} were committed"
    return "" if found == file else "its bytes have changed"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically."""
    with atomic_path(path) as temporary, create(temporary) as file:
        file.write(content)


def link(source: Path, target: Path) -> None:
    """Create a hard link to a file, or a symbolic link where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source.resolve())


def fsync_folder(folder: Path) -> None:
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        with naming(path if path.is_dir() else path.parent):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
