"""Where and in which precision the models run, and what makes them run fast there."""

from __future__ import annotations

import contextlib
import ctypes

import torch
from torch import nn

from ovseg_batch.errors import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MULTIPLIES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def resolve_device(device: str) -> torch.device:
    """The device a config means. `auto` is the first GPU, or the CPU where there is none.

    Raises:
        UsageError: a device that was asked for and is not there. Never a silent CPU run.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"run.device {device!r} is no device. Write auto, cpu, cuda or cuda:1.") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise UsageError(
            f"run.device {device!r} was asked for, and PyTorch sees {count} GPUs here. "
            "Check `nvidia-smi` and that torch was installed with CUDA, or say run.device: cpu."
        )
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"run.device {device!r} is not supported. Write auto, cpu, cuda or cuda:1.")
    return chosen


def precision(asked: str, device: str, large: bool = False) -> str:
    """`auto` is bf16 on a GPU and fp32 on a CPU, but there too bf16 for a `large` model if the CPU has AMX."""
    if asked != "auto":
        return asked
    fast = resolve_device(device).type == "cuda" or (large and bool(torch.cpu.get_capabilities().get("amx_bf16")))
    return "bf16" if fast else "fp32"


def autocast(device: torch.device, kind: str) -> torch.autocast:
    """The context in which a model of that precision runs."""
    return torch.autocast(device.type, dtype=DTYPES[kind], enabled=kind != "fp32")


def lower(model: nn.Module, kind: str) -> None:
    """Keep the weights of matrix products at the precision in which autocast multiplies, else cast at every call.

    Everything else, norms above all, keeps fp32 weights.
    """
    for module in model.modules():
        if isinstance(module, MULTIPLIES):
            module.to(DTYPES[kind])


def keep_memory() -> None:
    """Let this process keep the memory that tensors on a CPU give back, until it ends.

    glibc otherwise returns large blocks to the kernel and faults them in again, page by page, for the next tensor
    (docs/performance.md has what that costs). Elsewhere than on glibc this does nothing.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
