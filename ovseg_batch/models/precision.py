"""Determine the device and the precision of a run, without importing PyTorch on machines that have no GPU.

Importing PyTorch takes seconds. A plan depends only on whether a GPU is used, and on the precision.
"""

from __future__ import annotations

import sys
from pathlib import Path

DEVICES = Path("/dev")
GPU_FILES = ("nvidia[0-9]*", "dxg", "kfd")  # device files of NVIDIA's driver, WSL and AMD's driver
CPU_INFO = Path("/proc/cpuinfo")


def uses_gpu(device: str) -> bool:
    """Return whether the setting of a device means a GPU; see `resolve_device`.

    Raises:
        UsageError: the device is not available.
    """
    if device == "cpu" or (device == "auto" and not _gpu_possible()):
        return False
    from ovseg_batch.models.device import resolve_device

    return resolve_device(device).type == "cuda"


def _gpu_possible() -> bool:
    """Return whether this machine may have a GPU. Only PyTorch can tell whether it works."""
    return "torch" in sys.modules or any(any(DEVICES.glob(pattern)) for pattern in GPU_FILES)


def precision(setting: str, device: str, large: bool = False) -> str:
    """Return the precision of a setting on a device.

    Args:
        setting: `fp32`, `bf16`, `fp16` or `auto`. `auto` is `half_precision()` on a GPU and fp32 on a CPU, but bf16 for
            a large model on a CPU with AMX.
        device: setting of the device; see `resolve_device`.
        large: whether the model has full size.
    """
    if setting != "auto":
        return setting
    if uses_gpu(device):
        from ovseg_batch.models.device import half_precision

        return half_precision()
    return "bf16" if large and has_amx() else "fp32"


def has_amx() -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware (Intel AMX)."""
    try:
        return "amx_bf16" in CPU_INFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
