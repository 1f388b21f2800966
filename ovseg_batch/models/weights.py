"""Read tensors from weight files without running code that a pickle may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ovseg_batch.errors import OvsegError


def read_state_dict(file: str) -> dict[str, Tensor]:
    """Return the tensors of a weights file, on the CPU.

    Raises:
        OvsegError: a TorchScript archive or pickled objects (which could run code), or a damaged file.
    """
    try:
        if file.endswith(".safetensors"):
            return dict(load_file(file))
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        if "torchscript" in str(error).lower():
            raise OvsegError(
                f"{file} is a TorchScript archive, which can run code. If you trust it, take the tensors out with\n"
                f"  python -c \"import torch; m = torch.jit.load('{file}', map_location='cpu'); "
                "torch.save(m.state_dict(), 'weights.pt')\"\nand use weights.pt."
            ) from None
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise OvsegError(
                f"{file} holds pickled objects, which could run code, beside or instead of tensors. "
                "Convert it to safetensors on a machine where you trust it."
            ) from None
        raise OvsegError(f"{file} cannot be read as weights: {error}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor | int | float) for v in content.values()):
        raise OvsegError(f"{file} holds no state dict.")
    return {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
