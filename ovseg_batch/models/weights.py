"""Tensors out of weight files, without ever running what else is in them: safetensors, or `weights_only` loading."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ovseg_batch.errors import OvsegError


def read_state_dict(file: str) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU.

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


def file_hash(path: str | Path) -> str:
    """BLAKE2b of a file's bytes, read once as long as its size and time stay the same."""
    status = Path(path).stat()
    return _hash(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hash(path: str, size: int, mtime_ns: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
