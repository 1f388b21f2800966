"""Read tensors from weight files without running code in pickles."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ovseg_batch.errors import OvsegError
from ovseg_batch.units import counted

M = TypeVar("M", bound=nn.Module)

PICKLE = (b"\x80", b"P")  # first byte of a pickle, and of a zip archive with one


def read_state_dict(file: str) -> dict[str, Tensor]:
    """Return the tensors of a weights file, on the CPU.

    Raises:
        OvsegError: the file is a TorchScript archive, holds pickled objects (which could run code), or is damaged.
    """
    try:
        if file.endswith(".safetensors"):
            return dict(load_file(file))
        with Path(file).open("rb") as opened:
            if opened.read(1) not in PICKLE:
                raise ValueError("it does not begin like a weights file.")
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
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
        first = str(error).strip().partition("\n")[0]
        raise OvsegError(
            f"{file} cannot be read as weights: {first} If it is a download, it may be cut short; fetch it again."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor | int | float) for v in content.values()):
        raise OvsegError(f"{file} holds no state dict.")
    return {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}


def random_or_empty(build: Callable[[], M], seed: int | None) -> M:
    """Build a module with random weights, or, without a seed, on the meta device for `load_weights` with `assign`.

    Drawing weights to replace them takes longer than reading them.
    """
    if seed is not None:
        torch.manual_seed(seed)
        return build()
    with torch.device("meta"):
        return build()


def load_weights(module: nn.Module, state: Mapping[str, Tensor], file: str, what: str, assign: bool = False) -> None:
    """Copy the tensors of a weights file into a module.

    Args:
        state: result of `read_state_dict`.
        file: the weights file, for the message.
        what: description of the module, for the message.
        assign: put the tensors themselves in place of the module's, which may be on the meta device.

    Raises:
        OvsegError: the names or shapes of the tensors differ from those of the module.
    """
    own = module.state_dict()
    wrong = {
        "missing": [name for name in own if name not in state],
        "unknown": [name for name in state if name not in own],
        "of another shape": [name for name in own if name in state and own[name].shape != state[name].shape],
    }
    found = [
        f"{counted(len(names), 'tensor')} {kind} ({', '.join(names[:2])} …)" for kind, names in wrong.items() if names
    ]
    if found:
        raise OvsegError(f"The weights {Path(file).name} do not fit {what}: {'; '.join(found)}.")
    module.load_state_dict(state, assign=assign)


def own_weights(module: Any) -> Any:
    """Copy the weights of a module, whose tensors may be parts of a mapped file, and return the module.

    They begin at any address there, and the last bits of a product depend on the address.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module
