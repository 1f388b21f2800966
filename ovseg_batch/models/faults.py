"""Classify errors of PyTorch: either this process has lost the GPU, or the model failed.

This module does not import PyTorch, because only a process that has imported it can get its errors.
"""

from __future__ import annotations

import gc
import sys

from ovseg_batch.errors import DeviceLost, is_out_of_memory


def has_started() -> bool:
    """Return whether this process uses a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def is_lost(error: BaseException) -> bool:
    """Return whether the GPU has become unusable for this process.

    After a device-side assert, an illegal access or a lost device, every later operation of the process fails too. The
    error itself may not show it, because cuBLAS and cuDNN raise a plain RuntimeError. A synchronisation shows it.
    """
    if isinstance(error, DeviceLost):
        return True
    if not isinstance(error, RuntimeError) or is_out_of_memory(error) or not has_started():
        return False
    try:
        sys.modules["torch"].cuda.synchronize()
    except RuntimeError:
        return True
    return False


def release_memory() -> None:
    """Release unreachable Python objects and the GPU memory that PyTorch caches."""
    gc.collect()
    if has_started():
        sys.modules["torch"].cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
