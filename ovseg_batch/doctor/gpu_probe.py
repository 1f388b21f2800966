"""Describe the GPUs that PyTorch finds, or compute on one of them. Runs as a script in a separate process.

`gpus.py` runs this file, so that a GPU that hangs or crashes its process does not affect the caller. It imports only
torch, and prints one JSON object as its last line.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

REAL_BF16 = 8  # major compute capability from which GPUs compute bf16 in hardware (models/device.py)
SIDE = 256  # side of the matrices; their product is exact in half precision


def describe() -> dict[str, Any]:
    """Return PyTorch's properties of the GPUs, without computing on them."""
    import torch

    reason = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        try:
            torch.cuda.init()
        except Exception as error:  # RuntimeError or AssertionError, depending on the build of torch
            reason = str(error).strip().splitlines()[0]
        reason = reason or next((str(one.message).splitlines()[0] for one in caught), "")
    version = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)
    return {
        "count": count,
        "reason": reason,
        "cuda": torch.version.cuda or "",
        "hip": torch.version.hip or "",
        "driver_cuda": version() if count else 0,
    }


def compute(index: int) -> dict[str, Any]:
    """Multiply two matrices in fp32 and half precision on one GPU, and describe it."""
    import torch

    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    found = torch.cuda.get_device_properties(device)
    major, minor = torch.cuda.get_device_capability(device)
    kinds = [torch.float32, torch.float16]
    if major >= REAL_BF16 or torch.version.hip:  # some older GPUs do not support bf16
        kinds.append(torch.bfloat16)
    right = True
    for kind in kinds:
        ones = torch.ones(SIDE, SIDE, device=device, dtype=kind)
        right &= bool(((ones @ ones).cpu() == SIDE).all())
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": found.name,
        "major": int(major),
        "minor": int(minor),
        "free": int(free),
        "total": int(total),
        "right": right,
    }


def main() -> None:
    """Print the description of all GPUs, or of the one with the given index."""
    try:
        result = compute(int(sys.argv[1])) if len(sys.argv) > 1 else describe()
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        result = {"error": f"{type(error).__name__}: {lines[0]}"}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
