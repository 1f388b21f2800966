"""Disks that are full or read-only for real: a small file system in memory, mounted where a test wants it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


class CannotMount(Exception):
    """This machine or this user may not mount."""


class SmallDisk:
    """A tmpfs at `path`."""

    def __init__(self, path: Path, kib: int) -> None:
        self.path = path
        path.mkdir()
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", path], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise CannotMount(str(error)) from None

    def grow(self, kib: int) -> None:
        self._remount(f"size={kib}k")

    def turn_read_only(self, patience: float = 0) -> None:
        """Waits for a moment when no file is open for writing, as the kernel wants it.

        Raises:
            TimeoutError: there was none in `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                self._remount("ro")
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.path} was never free of writers") from None
                time.sleep(0.005)
            else:
                return

    def turn_writable(self) -> None:
        self._remount("rw")

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True, capture_output=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", self.path], check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(path: Path, kib: int) -> Iterator[SmallDisk]:
    """Mount, and unmount at the end.

    Raises:
        CannotMount: not on this machine.
    """
    disk = SmallDisk(path, kib)
    try:
        yield disk
    finally:
        disk.unmount()
