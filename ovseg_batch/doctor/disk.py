"""Check the file system of a workdir: write access, speed of syncs, locks, links and free space."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ovseg_batch.doctor.records import Check, failed, ok, warning
from ovseg_batch.io.atomic import TEMPORARY_SUFFIX, owner_is_gone, temporary_path, write_bytes
from ovseg_batch.units import size

SYNCS = 9  # fsyncs that are measured; the median is reported
BLOCK = 4096  # bytes per write
SLOW_SYNC = 100.0  # ms; a shard of 256 images (the default) needs about ten syncs
LEAST_SPACE = 1e9  # bytes
NAME = "ovseg-doctor"


def nearest_folder(workdir: Path) -> Path:
    """Return the workdir, or the nearest path above it that exists."""
    path = workdir.absolute()
    return next(one for one in (path, *path.parents) if os.path.lexists(one))


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Create a hidden folder in `folder`, and remove it at the end. Folders of killed processes are removed first.

    Raises:
        OSError: the folder cannot be written.
    """
    for left in folder.glob(f".{NAME}.*{TEMPORARY_SUFFIX}"):
        if owner_is_gone(left):
            shutil.rmtree(left, ignore_errors=True)
    scratch = temporary_path(folder / NAME)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_disk(workdir: Path) -> list[Check]:
    """Check write access to the workdir, its sync speed, locks and hard links. Removes all files that it writes."""
    folder = nearest_folder(workdir)
    name = "workdir"
    if not folder.is_dir():
        return [failed(name, f"{folder} is not a folder.", "Choose another workdir with -o.")]
    try:
        with scratch_folder(folder) as scratch:
            milliseconds = _sync_speed(scratch)
            probes = [_check_locks(scratch), _check_links(scratch)]
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "Free space, change the permissions, or choose another workdir with -o."
        return [failed(name, f"{folder} cannot be written: {reason}.", advice)]
    found = f"{folder} can be written; file system {_file_system(folder)}."
    return [ok(name, found), _judge_sync(milliseconds), *probes]


def check_space(workdir: Path, need: int | None, files: int = 0) -> Check:
    """Check the free space.

    Args:
        need: bytes that the run writes. None: unknown.
        files: number of files that the run writes, if known.
    """
    folder = nearest_folder(workdir)
    free = shutil.disk_usage(folder).free
    takes = "" if need is None else f", and the run takes about {size(need)}"
    found = f"{size(free)} free on the file system of {folder}{takes}."
    advice = "Free space, or choose a workdir on another disk with -o."
    if need is not None and need > free:
        return failed("space", found, f"{advice} dense.cache and sam.cache decide how much a run stores.")
    if free < LEAST_SPACE:
        return failed("space", f"{found} Below {size(LEAST_SPACE)} a run is likely to fill the disk.", advice)
    status = os.statvfs(folder)
    if status.f_files and status.f_favail < files:  # file systems without a fixed number of inodes report 0
        return failed("space", f"{found} It has room for {status.f_favail} files; the run writes {files}.", advice)
    return ok("space", found)


def _sync_speed(scratch: Path) -> float:
    """Return the median milliseconds of a write, fsync and rename over an existing file."""
    times = []
    for number in range(SYNCS):
        content = bytes([number]) * BLOCK
        started = time.perf_counter()
        write_bytes(scratch / "block", content)  # as every commit does
        times.append(time.perf_counter() - started)
        if (scratch / "block").read_bytes() != content:
            raise OSError("a file that was written and renamed cannot be read back")
    return statistics.median(times) * 1000


def _judge_sync(milliseconds: float) -> Check:
    found = f"{milliseconds:.1f} ms for a write of 4 KB, fsync and rename."
    if milliseconds > SLOW_SYNC:
        advice = "Use a local disk for the workdir, or larger shards: --set manifest.shard_rows=1024."
        return warning("fsync", found, advice)
    return ok("fsync", found)


def _check_locks(scratch: Path) -> Check:
    """Take a shared lock as a run does, then try the exclusive lock of `gc`, which must fail."""
    reader = os.open(scratch / "lock", os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(reader, fcntl.LOCK_SH)
        with (scratch / "lock").open("a+") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ok("locks", "File locks work.")
    except OSError as error:
        found = f"The file system has no file locks ({error.strerror or error})."
    else:
        found = "The file system grants an exclusive lock beside a shared one."
    finally:
        os.close(reader)
    return warning("locks", found, "A run works without them. Do not use `gc` on this workdir while a run is active.")


def _check_links(scratch: Path, link: Callable[[Path, Path], None] = os.link) -> Check:
    try:
        link(scratch / "block", scratch / "linked")
    except OSError as error:
        found = f"The file system has no hard links ({error.strerror or error})."
        advice = "A run works without them: edited/ then holds copies, so edited images take twice their space."
        return warning("hard links", found, advice)
    return ok("hard links", "Hard links work; edited/ takes no extra space.")


def _file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the type of the file system that holds the folder, such as `ext4` or `nfs4`."""
    kinds: dict[Path, str] = {}
    with contextlib.suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            _, place, kind, *_ = line.split(" ")
            kinds[Path(place.replace("\\040", " "))] = kind
    resolved = folder.resolve()
    return next((kinds[one] for one in (resolved, *resolved.parents) if one in kinds), "of unknown type")
