"""The devices that one process sees, and what PyTorch calls of the CUDA driver.

Only functions of `torch._C` are replaced where that suffices: the Python code of torch.cuda above them stays the real
one, with its lazy initialisation, its checks for forks and its device contexts.
"""

from __future__ import annotations

import functools
import os
import re
import threading
import time
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from emulated_cuda import faults

ENTRY = re.compile(r"(?:(?:GPU|MIG)-)?(\d+)")
MEMORY = 24 << 30
CAPABILITY = "9.0"

_real_device_count = getattr(torch._C, "_cuda_getDeviceCount", lambda: 0)
_thread = threading.local()  # CUDA's current device belongs to a thread


def visible(count: int, listed: str | None) -> tuple[int, ...]:
    """Return the physical indices of the visible devices, as the driver does.

    Args:
        count: the number of physical devices.
        listed: CUDA_VISIBLE_DEVICES. The list ends at the first invalid entry; a repeated one hides all devices.
    """
    if listed is None:
        return tuple(range(count))
    found: list[int] = []
    for entry in listed.split(","):
        match = ENTRY.fullmatch(entry.strip())
        if match is None or int(match[1]) >= count:
            break
        if int(match[1]) in found:
            return ()
        found.append(int(match[1]))
    return tuple(found)


@functools.cache
def devices() -> tuple[int, ...]:
    """Return the physical indices of this process's devices, fixed at the first query.

    The first query also makes CUDA unusable in the forks of this process, as the real one does.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a real GPU of this machine stays out of it
    try:
        _real_device_count()
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if listed is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = listed
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]  # PyTorch's own guard calls the driver
    return visible(int(os.environ["EMULATED_GPUS"]), listed)


def current() -> int:
    """Return the index of this thread's current device."""
    return getattr(_thread, "device", 0)


def set_current(index: int) -> int:
    """Make a device the current one of this thread, and return the index of the one before. -1 changes nothing."""
    before = current()
    if index >= 0:
        physical(index)
        _thread.device = index
    return before


def physical(index: int) -> int:
    """Return the physical index of `cuda:index`. Raises torch.AcceleratorError: there is no such device."""
    if not 0 <= index < len(devices()):
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    return devices()[index]


class Allocation:
    """Bytes of a storage on `cuda:index`, counted as long as this object lives.

    Raises:
        torch.OutOfMemoryError: EMULATED_OOM forbids the size, or the device is full.
    """

    _lock = threading.RLock()
    live: ClassVar[dict[int, int]] = {}
    peak: ClassVar[dict[int, int]] = {}

    def __init__(self, index: int, size: int) -> None:
        self.index, self.size = index, 0
        faults.refuse_size(size, physical(index))
        with self._lock:
            total = self.live.get(index, 0) + size
            if total > memory():
                raise torch.OutOfMemoryError(faults.out_of_memory(size))
            self.size = size
            self.live[index] = total
            self.peak[index] = max(total, self.peak.get(index, 0))

    def __del__(self) -> None:
        with self._lock:
            self.live[self.index] = self.live.get(self.index, 0) - self.size


def memory() -> int:
    """Return the bytes of every device."""
    return int(os.environ.get("EMULATED_MEMORY") or MEMORY)


def properties(index: int) -> SimpleNamespace:
    """Return what the real _get_device_properties does, without what nobody reads."""
    entries = (os.environ.get("EMULATED_CAPABILITY") or CAPABILITY).split(",")
    number = physical(index)
    major, minor = entries[min(number, len(entries) - 1)].split(".")
    return SimpleNamespace(
        name="Emulated GPU",
        major=int(major),
        minor=int(minor),
        total_memory=memory(),
        multi_processor_count=1,
        uuid=f"GPU-{number}",
        is_integrated=0,
        gcnArchName="",
    )


def memory_stats(index: int) -> dict[str, Any]:
    """Return the counters that torch.cuda.memory_allocated and its siblings read, in bytes."""
    bytes_of = {"current": Allocation.live.get(index, 0), "peak": Allocation.peak.get(index, 0)}
    return {"allocated_bytes": {"all": bytes_of}, "reserved_bytes": {"all": bytes_of}}


def reset_peak(index: int) -> None:
    """Start the peak of the allocated bytes again at the present ones."""
    Allocation.peak[index] = Allocation.live.get(index, 0)


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Return the free and the total bytes of a device. Other processes' memory is not counted."""
    torch.cuda.init()
    index = torch.cuda._utils._get_device_index(device, optional=True)
    faults.strike_synchronisation(physical(index))
    return memory() - Allocation.live.get(index, 0), memory()


def initialise() -> None:
    """Initialise as torch._C._cuda_init does. Raises RuntimeError: no device is visible."""
    if not devices():
        raise RuntimeError("No CUDA GPUs are available")
    generators = tuple(torch.Generator() for _ in devices())  # on the host: only manual_seed reaches them
    torch.cuda.default_generators = generators


class Event:
    """A moment on the device, which is a moment on the host here."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._seconds: float | None = None

    def record(self, stream: Any = None) -> None:
        torch.cuda.init()
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds from this event to another one."""
        if self._seconds is None or end._seconds is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (end._seconds - self._seconds) * 1000


def install() -> None:
    """Replace the driver below torch.cuda."""
    core, cuda = torch._C, torch.cuda

    def check() -> None:
        faults.strike_synchronisation(physical(current()))

    driver = {
        "_cuda_getDeviceCount": lambda: len(devices()),
        "_cuda_init": initialise,
        "_cuda_getDevice": current,
        "_cuda_setDevice": set_current,
        "_cuda_exchangeDevice": set_current,
        "_cuda_maybeExchangeDevice": set_current,
        "_cuda_synchronize": check,
        "_cuda_emptyCache": check,
        "_cuda_memoryStats": memory_stats,
        "_cuda_resetPeakMemoryStats": reset_peak,
    }
    for name, function in driver.items():
        setattr(core, name, function)
    cuda._exchange_device = cuda._maybe_exchange_device = set_current
    cuda._device_count_nvml = lambda: -1  # NVML would count the real GPUs
    cuda._get_device_properties = properties
    cuda.mem_get_info = cuda.memory.mem_get_info = mem_get_info
    cuda.Event = cuda.streams.Event = Event
