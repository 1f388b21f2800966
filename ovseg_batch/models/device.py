"""Where and in which precision the models run."""

from __future__ import annotations

import torch

from ovseg_batch.errors import UsageError


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


def precision(asked: str, device: str) -> str:
    """`auto` is fp32 on a CPU and bf16 on a GPU."""
    if asked != "auto":
        return asked
    return "bf16" if resolve_device(device).type == "cuda" else "fp32"


def autocast(device: torch.device, kind: str) -> torch.autocast:
    """The context in which a model of that precision runs; weights themselves stay fp32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
