"""What an error of PyTorch means: the GPU is lost to this process, or the model failed.

An error of PyTorch can only come from a process that has imported it, so nothing here imports it.
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
    """Return whether the GPU does not work in this process any more.

    After a device-side assert, an illegal access or a lost device, every later operation of the process fails too. The
    error itself does not always show it: cuBLAS and cuDNN raise a plain RuntimeError. A synchronisation shows it.
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
    """Release what Python no longer reaches and what PyTorch caches on the GPU."""
    gc.collect()
    if has_started():
        sys.modules["torch"].cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
