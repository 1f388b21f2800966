"""Assign GPUs to workers."""

from __future__ import annotations

from collections.abc import Mapping

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
SHARING = 4  # workers of a GPU at most
WORKER_CORES, WORKER_BYTES = 3, 16 << 30  # CPU cores and bytes of GPU memory for each worker of a shared GPU


def is_gpu(device: str) -> bool:
    """Return whether a device name means a GPU."""
    return device.startswith("cuda")


def workers_per_gpu(cores: int, gpus: int, memory: int) -> int:
    """Return how many workers share each GPU by default. One worker cannot keep a fast GPU busy (docs/performance.md).

    Args:
        cores: CPU cores of this machine.
        gpus: number of GPUs.
        memory: bytes of the smallest of them.
    """
    return max(1, min(SHARING, cores // max(gpus, 1) // WORKER_CORES, memory // WORKER_BYTES))


def own_device(device: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the name of a device within its worker, and an environment that hides the other GPUs from the worker.

    Libraries that allocate on the first GPU then allocate on the worker's GPU.

    Args:
        device: `cpu`, `cuda` or `cuda:K`, where K is an index into the GPUs that are visible to this process.
        environment: environment of this process. `CUDA_VISIBLE_DEVICES` may list indices, UUIDs (`GPU-…`) and MIG
            instances (`MIG-…`). K is then an index into that list.
    """
    if not is_gpu(device):
        return device, {}
    index = int(device.partition(":")[2] or 0)
    listed = environment.get(VISIBLE_DEVICES)
    if listed is None:
        return "cuda:0", {VISIBLE_DEVICES: str(index)}
    entries = [entry.strip() for entry in listed.split(",")]
    return "cuda:0", {VISIBLE_DEVICES: entries[index] if index < len(entries) else ""}
