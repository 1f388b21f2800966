"""The GPU, its driver and the software; a product in every precision."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import torch

from gpu_checks.records import Options, Report
from ovseg_batch.models.device import DTYPES, half_precision, prepare
from ovseg_batch.version import __version__

NEED, QUICK_NEED = 6.0, 0.5  # GiB that must be free: what the section `faults` needs, and a card of 8 GB has
SIDE = 256
ERROR = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 3e-3}  # relative, of a product whose sums have 256 terms


def run(report: Report, options: Options) -> None:
    """Report what is here, and check what the product needs."""
    index = torch.device(options.device).index or 0
    with report.guarded("GPU"):
        properties = torch.cuda.get_device_properties(index)
        names = ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
        report.measured("GPUs", names)
        report.measured("driver", driver())
        report.measured("compute capability", f"{properties.major}.{properties.minor}")
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        report.measured("memory", f"{total:.1f} GiB")
        report.at_least("free memory, GiB", free, QUICK_NEED if options.quick else NEED)
    report.measured("versions", f"ovseg_batch {__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    report.measured("cores", f"{os.cpu_count()}, {torch.get_num_threads()} threads; Python {platform.python_version()}")
    with report.guarded("precision auto"):
        report.measured("precision auto", half_precision())
    with report.guarded("the GPU can be prepared"):
        prepare(options.device)
    for kind, limit in ERROR.items():
        with report.guarded(f"product in {kind}"):
            report.at_most(f"product in {kind}: relative error", product_error(options.device, kind), limit)


def driver() -> str:
    """Return the version of NVIDIA's driver, or `unknown`."""
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lines = ended.stdout.split()
    return lines[0] if lines else "unknown"


def product_error(device: str, kind: str) -> float:
    """Return the largest error of a matrix product on the device, relative to the largest entry."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
    exact = one.double() @ other.double()
    found = (one.to(device, DTYPES[kind]) @ other.to(device, DTYPES[kind])).cpu().double()
    return float((found - exact).abs().max() / exact.abs().max())
