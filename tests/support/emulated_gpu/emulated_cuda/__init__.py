"""CUDA devices emulated on the CPU. README.md lists what the emulation can and cannot see.

runtime.py     the devices of a process: torch.cuda and the driver below it, memory
tensors.py     tensors on a device, and the operations on them
faults.py      injected errors
log.py         counts by line of the project, and a record of the devices that each process used
"""

from __future__ import annotations


def install() -> None:
    """Replace the CUDA driver in this process. Call it once, before any CUDA query."""
    from emulated_cuda import runtime, tensors

    runtime.install()
    tensors.install()
