"""Select and prepare the device and the precision of the models.

Importing this module runs no function, because a process that queries CUDA before it forks cannot use a GPU in its
children.
"""

from __future__ import annotations

import contextlib
import ctypes

import torch
from torch import nn

from ovseg_batch.errors import DeviceLost, OvsegError, UsageError
from ovseg_batch.models.faults import first_line
from ovseg_batch.units import counted

HALF_SINCE = 8  # major compute capability from which GPUs multiply bf16 in hardware (Ampere)
PROBE_SIDE = 64  # side of the matrix product that tests a GPU

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MULTIPLIES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention)

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h


def resolve_device(device: str) -> torch.device:
    """Return the device of a setting. `auto` is the first GPU, or the CPU if there is none.

    Raises:
        UsageError: the device does not exist. The CPU never replaces it silently.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"run.device {device!r} is not a device. Write auto, cpu, cuda or cuda:1.") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise UsageError(
            f"run.device {device!r} is set, but PyTorch finds {counted(count, 'GPU')} on this machine. "
            "Check `nvidia-smi` and that torch was installed with CUDA, or set run.device: cpu."
        )
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"run.device {device!r} is not supported. Write auto, cpu, cuda or cuda:1.")
    return chosen


def half_precision() -> str:
    """Return `bf16` where every visible GPU multiplies it in hardware, otherwise `fp16`.

    PyTorch emulates bf16 on older GPUs, which is slower than fp32. All GPUs use the same precision, because workers on
    different GPUs must compute the same masks.

    Raises:
        OvsegError: CUDA does not start.
    """
    if torch.version.hip:
        return "bf16"
    try:
        capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    except RuntimeError as error:
        raise OvsegError(
            f"PyTorch finds a GPU, but CUDA does not start: {first_line(error)}. `ovseg-batch doctor` checks the GPUs; "
            "run.device: cpu computes without them."
        ) from None
    return "bf16" if all(major >= HALF_SINCE for major, _ in capabilities) else "fp16"


def prepare(device: str) -> None:
    """Prepare this process for computing on a device, and verify that the device computes.

    On a GPU, fp32 means IEEE fp32: TF32 is disabled in matrix products and convolutions. The stages use bf16 or fp16
    where speed matters. Operations in fp32 (softmax, norms, resizing) need its full precision.

    Raises:
        DeviceLost: the GPU cannot be used.
    """
    keep_memory()
    target = torch.device(device)
    if target.type != "cuda":
        return
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        torch.cuda.set_device(target.index or 0)  # sam2 allocates on the current GPU while it builds a model
        ones = torch.ones(PROBE_SIDE, PROBE_SIDE, device=target)
        total = float((ones @ ones).sum())
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch without CUDA
        raise DeviceLost(first_line(error)) from None
    if total != PROBE_SIDE**3:
        raise DeviceLost(f"a product of ones sums to {total}, not {PROBE_SIDE**3}")


def autocast(device: torch.device, kind: str) -> torch.autocast:
    """Return the autocast context of a precision."""
    return torch.autocast(device.type, dtype=DTYPES[kind], enabled=kind != "fp32")


def lower(model: nn.Module, kind: str) -> None:
    """Convert the weights of matrix products to the precision of autocast, to avoid a conversion at every call.

    All other weights, such as those of norms, stay in fp32.
    """
    for module in model.modules():
        if isinstance(module, MULTIPLIES):
            module.to(DTYPES[kind])


def keep_memory() -> None:
    """Keep freed memory of CPU tensors in this process until it ends.

    By default, glibc returns large blocks to the kernel, and the next tensor causes a page fault for every page
    (measured in docs/performance.md). Without glibc, this function does nothing.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_ARENA_MAX, 1)  # threads' own arenas are returned whenever they are empty
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
