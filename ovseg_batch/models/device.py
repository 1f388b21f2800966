"""Where and in which precision the models run, and what makes them run fast there.

No function here runs when the module is imported: a process that queries CUDA before it forks cannot use a GPU in its
children.
"""

from __future__ import annotations

import contextlib
import ctypes

import torch
from torch import nn

from ovseg_batch.errors import DeviceLost, OvsegError, UsageError
from ovseg_batch.models.faults import first_line

HALF_SINCE = 8  # major compute capability from which GPUs multiply bf16 in hardware (Ampere)
PROBE_SIDE = 64  # of the product that shows that a GPU computes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MULTIPLIES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def resolve_device(device: str) -> torch.device:
    """The device a config means. `auto` is the first GPU, or the CPU where there is none.

    Raises:
        UsageError: the device is not there. The CPU never replaces it silently.
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


def half_precision() -> str:
    """Return `bf16` where every visible GPU multiplies it in hardware, otherwise `fp16`.

    PyTorch emulates bf16 on older GPUs, which is slower than fp32. One answer serves all GPUs: workers on different
    GPUs must give the same masks.

    Raises:
        OvsegError: the driver does not answer.
    """
    if torch.version.hip:
        return "bf16"
    try:
        capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    except RuntimeError as error:
        raise OvsegError(
            f"PyTorch sees a GPU, but CUDA does not start: {first_line(error)}. `ovseg-batch doctor` checks the GPUs; "
            "run.device: cpu computes without them."
        ) from None
    return "bf16" if all(major >= HALF_SINCE for major, _ in capabilities) else "fp16"


def prepare(device: str) -> None:
    """Prepare this process for computing on a device, and verify that the device computes.

    On a GPU, fp32 means IEEE fp32: TF32 is off in matrix products and in convolutions. The stages take bf16 or fp16
    where speed matters, and what they keep in fp32 (softmax, norms, resizing) needs its digits.

    Raises:
        DeviceLost: the GPU cannot be used.
    """
    target = torch.device(device)
    if target.type != "cuda":
        keep_memory()
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
