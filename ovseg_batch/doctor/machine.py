"""Check the cores, threads and memory that this process may use, within its affinity and its control group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ovseg_batch.doctor.records import Check, ok, warning
from ovseg_batch.settings import RunConfig
from ovseg_batch.units import size

LEAST_MEMORY = 2e9  # bytes; enough for the models of a preset and a few decoded images
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # cgroup v1 reports a huge number if there is no limit


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a control group.

    Attributes:
        cores: CPU time per wall time. None: not limited.
        memory: bytes. None: not limited.
        used: bytes in use by the group that limits the memory, without the page cache's inactive part.
    """

    cores: float | None = None
    memory: int | None = None
    used: int = 0


def control_group(record: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> Limits:
    """Return the tightest limits of this process's control group and of the groups above it (cgroup v1 and v2)."""
    cores: list[float] = []
    memory: list[tuple[int, int]] = []
    for folder in _groups(record, root):
        quota = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and quota[0].isdecimal() and quota[1].isdecimal():
            cores.append(int(quota[0]) / int(quota[1]))
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        if limit and limit[0].isdecimal() and int(limit[0]) < UNLIMITED:
            used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes") or ["0"]
            memory.append((int(limit[0]), max(0, int(used[0]) - _inactive(folder / "memory.stat"))))
    tightest = min(memory, key=lambda one: one[0] - one[1], default=None)
    return Limits(min(cores, default=None), *(tightest or (None, 0)))


def _groups(record: Path, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups, and of every group above them."""
    with contextlib.suppress(OSError):
        for line in record.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            base = root / controllers if controllers else root
            relative = Path(path.lstrip("/"))
            for folder in (relative, *relative.parents):
                yield base / folder


def _words(file: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return file.read_text().split()
    return []


def _inactive(statistics: Path) -> int:
    """Return the bytes of file cache that the kernel can drop at once."""
    words = _words(statistics)
    names = dict(zip(words[::2], words[1::2], strict=False))
    return int(names.get("inactive_file", 0))


def usable_cores(limits: Limits) -> float:
    """Return how many cores this process can keep busy."""
    cores = float(len(os.sched_getaffinity(0)))
    return min(cores, limits.cores) if limits.cores else cores


def usable_memory(limits: Limits, meminfo: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Return (total, available) bytes of memory for this process."""
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines()}
    total, available = values["MemTotal"], values.get("MemAvailable", values["MemFree"])
    if limits.memory is None:
        return total, available
    return min(total, limits.memory), min(available, max(0, limits.memory - limits.used))


def check_cores(run: RunConfig, limits: Limits, workers: int, on_cpu: bool) -> list[Check]:
    """Check the cores against the threads that the settings start.

    Args:
        run: its `threads` are used.
        workers: processes that compute at the same time.
        on_cpu: whether the models run on the CPU, so that the threads compute.
    """
    import torch

    cores, threads = usable_cores(limits), run.threads or torch.get_num_threads()
    amx = "AMX with bf16" if torch.cpu.get_capabilities().get("amx_bf16") else "no AMX"
    quota = f", limited to {limits.cores:g} by the control group" if limits.cores else ""
    found = (
        f"{cores:g} usable cores of {os.cpu_count()}{quota}; {threads} torch threads in each of {workers} "
        f"worker{'s' if workers > 1 else ''}; {amx}."
    )
    if on_cpu and threads * workers > max(cores, 1):
        fitting = max(1, int(cores) // workers)
        return [
            warning(
                "cores",
                f"{found} More threads than cores slow each other down.",
                f"Start the run with --set run.threads={fitting}. Keep this number until the run is finished.",
            )
        ]
    return [ok("cores", found)]


def check_memory(limits: Limits) -> Check:
    """Check the memory that is left for a run."""
    total, available = usable_memory(limits)
    group = " (limit of the control group)" if limits.memory is not None and total == limits.memory else ""
    found = f"{size(available)} available of {size(total)}{group}."
    if available < LEAST_MEMORY:
        return warning("memory", found, "Close other programs, or give this process a larger memory limit.")
    return ok("memory", found)
