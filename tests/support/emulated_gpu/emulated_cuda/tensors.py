"""Tensors that PyTorch takes for tensors on cuda:k. Their values lie in a tensor on the CPU."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from emulated_cuda import faults, log, runtime

HOST = torch.device("cpu")
COPIES = ("aten::copy_", "aten::_to_copy")
#: In inference mode, composite operations arrive whole. These may change the device and come again as `_to_copy`.
COMPOSITE = ("aten::to", "aten::type_as")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
#: Operations that wait for the device because the host needs their result, or its size.
WAITING = (
    "aten::_local_scalar_dense aten::item aten::is_nonzero aten::equal aten::nonzero aten::nonzero_numpy "
    "aten::_unique2 aten::unique_dim aten::unique_consecutive aten::masked_select"
).split()
#: Factories that give their result its size only after it has been allocated.
SIZED_LATE = "arange arange.start arange.start_step randperm randperm.generator eye eye.m".split()

_allocations: weakref.WeakValueDictionary[tuple[int, int], runtime.Allocation] = weakref.WeakValueDictionary()


class DeviceTensor(Tensor):
    """A tensor on a device.

    Args:
        values: its values on the CPU. The new tensor has their shape, strides and type.
        device: cuda:k.

    Raises:
        torch.OutOfMemoryError: the storage of `values` is new, and the device has no room for it.
    """

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, device: torch.device) -> DeviceTensor:
        storage = values.untyped_storage()
        key = (device.index, storage.data_ptr())
        allocation = _allocations.get(key)
        if allocation is None and storage.nbytes():
            allocation = _allocations[key] = runtime.Allocation(device.index, storage.nbytes())
        with torch.inference_mode(False):  # a view of a normal tensor stays a normal tensor in inference mode
            self = Tensor._make_wrapper_subclass(
                cls,
                values.size(),
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                layout=values.layout,
                device=device,
            )
        self.values, self._allocation = values, allocation
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, dict(kwargs or {}))

    def __repr__(self, **_: Any) -> str:
        return f"{self.values!r}, device='{self.device}'"

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()


def full_device(device: torch.device) -> torch.device:
    """Return `cuda` with the index of the current device; other devices as they are."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", runtime.current())
    return device


def launch(device: torch.device, source: Tensor | None = None) -> str:
    """Begin an operation on a device.

    Args:
        device: cuda:k.
        source: the tensor on the host that is copied to the device, if one is.

    Returns:
        the line of the project that the operation is counted for.

    Raises:
        RuntimeError: no such device, a fork of a process that has used CUDA, or an injected error.
    """
    torch.cuda.init()
    physical = runtime.physical(device.index)
    faults.strike(physical, source)
    log.record_use(physical)
    where = log.site()
    log.operations[where] += 1
    return where


def operate(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operation with at least one tensor on a device.

    Raises:
        RuntimeError: devices are mixed, a generator is on the host, or as `launch`.
    """
    name = func._schema.name
    if name in COMPOSITE:
        return func.decompose(*args, **kwargs)
    flat = list(leaves([args, [*kwargs.values()]]))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    source = args[1] if name == "aten::copy_" and not isinstance(args[1], DeviceTensor) else None
    device = next(tensor for tensor in tensors if isinstance(tensor, DeviceTensor)).device
    where = launch(device, source)
    if name not in COPIES:
        check_devices(name, device, args, tensors)
    for value in flat:
        if isinstance(value, torch.Generator) and value.device.type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    target = device
    if kwargs.get("device") is not None:
        target = full_device(torch.device(kwargs["device"]))
        kwargs["device"] = HOST
        kwargs.pop("pin_memory", None)
        if target.type == "cuda" and target != device:
            launch(target)
    count_copies(name, where, device, target, args)
    result = func(*mapped(values_of, args), **{key: mapped(values_of, value) for key, value in kwargs.items()})

    def on_device(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        for tensor in tensors:
            if value is values_of(tensor):  # in place, or out=
                if tensor.shape != value.shape or tensor.stride() != value.stride():
                    raise NotImplementedError(f"{name} gave a tensor another shape, which is not emulated ({where})")
                return tensor
        return DeviceTensor(value, target) if target.type == "cuda" else value

    return mapped(on_device, result)


def leaves(value: Any) -> Iterator[Any]:
    """Yield the values in nested lists and tuples."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to the values in nested lists and tuples."""
    if isinstance(value, list | tuple):
        return type(value)([mapped(function, part) for part in value])
    return function(value)


def values_of(value: Any) -> Any:
    """Return the values of a tensor on a device; anything else as it is."""
    return value.values if isinstance(value, DeviceTensor) else value


def check_devices(name: str, device: torch.device, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raise RuntimeError unless all tensors are on one device. Scalars may be on the host, indices too."""
    indices: list[Tensor] = []
    if name in INDEXING and isinstance(args[0], DeviceTensor):
        indices = [index for index in args[1] if index is not None]
    for tensor in tensors:
        on_host = tensor.device.type != "cuda"
        if on_host and (tensor.dim() == 0 or any(tensor is index for index in indices)):
            continue
        if tensor.device != device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {device} and "
                f"{tensor.device}! ({name})"
            )


def count_copies(name: str, where: str, device: torch.device, target: torch.device, args: Sequence[Any]) -> None:
    """Count what an operation copies between host and device, and whether the host waits for it."""
    if name == "aten::copy_":
        log.to_device[where] += not isinstance(args[1], DeviceTensor)
        log.from_device[where] += not isinstance(args[0], DeviceTensor)
        log.synchronisations[where] += not isinstance(args[0], DeviceTensor)
    elif target.type != "cuda":
        log.from_device[where] += 1
        log.synchronisations[where] += 1
    elif name in WAITING:
        log.synchronisations[where] += 1
    elif name in INDEXING:
        indices = [index for index in args[1] if index is not None]
        log.to_device[where] += sum(not isinstance(index, DeviceTensor) for index in indices)
        log.synchronisations[where] += any(index.dtype == torch.bool for index in indices)


def install() -> None:
    """Register kernels for the CUDA keys of PyTorch's dispatcher: allocations and what reaches it below Python."""
    library = torch.library.Library("aten", "IMPL")
    DeviceTensor._library = library  # the kernels are removed with this object
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to assigns wrappers, not their data

    def allocated(factory: Any) -> Any:
        def kernel(*args: Any, device: Any = None, layout: Any = None, pin_memory: Any = None, **kwargs: Any) -> Tensor:
            on = full_device(torch.device("cuda") if device is None else torch.device(device))
            launch(on)
            return DeviceTensor(factory(*args, device=HOST, **{k: v for k, v in kwargs.items() if v is not None}), on)

        return kernel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of a kernel that is overridden
        for name in ("empty.memory_format", "empty_strided", *SIZED_LATE):
            packet, _, overload = name.partition(".")
            factory = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, allocated(factory), "CUDA", allow_override=True)
        # Lists that become tensors are copied below __torch_dispatch__.
        library.impl("copy_", lambda *args: operate(torch.ops.aten.copy_.default, args, {}), "CUDA")
        # With a kernel of its own, attention reaches __torch_dispatch__ in one piece, as a fused kernel computes it.
        attention = torch.ops.aten.scaled_dot_product_attention.default
        library.impl("scaled_dot_product_attention", lambda *a, **k: operate(attention, a, k), "CUDA")
