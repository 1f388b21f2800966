"""Which GPU a worker sees."""

from __future__ import annotations

from collections.abc import Mapping

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


def is_gpu(device: str) -> bool:
    """Return whether a device name means a GPU."""
    return device.startswith("cuda")


def own_device(device: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the name of a worker's device in the worker, and the environment that hides every other GPU from it.

    Libraries that allocate on the first GPU then allocate on the worker's own.

    Args:
        device: `cpu`, `cuda` or `cuda:K`; K is an index into the GPUs that this process sees.
        environment: of this process. Its `CUDA_VISIBLE_DEVICES` may list indices, UUIDs (`GPU-…`) and MIG instances
            (`MIG-…`); K then counts its entries.
    """
    if not is_gpu(device):
        return device, {}
    index = int(device.partition(":")[2] or 0)
    listed = environment.get(VISIBLE_DEVICES)
    if listed is None:
        return "cuda:0", {VISIBLE_DEVICES: str(index)}
    entries = [entry.strip() for entry in listed.split(",")]
    return "cuda:0", {VISIBLE_DEVICES: entries[index] if index < len(entries) else ""}
