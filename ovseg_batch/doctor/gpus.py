"""Check the GPUs of this machine: whether each one computes, its memory, and whether `run.device` is available.

Each GPU computes in a separate process (`gpu_probe.py`). A GPU that hangs or crashes its process is reported, and the
others are still checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.doctor.records import Check, failed, ok, warning
from ovseg_batch.engine.devices import VISIBLE_DEVICES
from ovseg_batch.errors import UsageError
from ovseg_batch.models.device import HALF_SINCE, resolve_device
from ovseg_batch.settings import RunConfig
from ovseg_batch.units import counted, size

PROBE = Path(__file__).with_name("gpu_probe.py")
PROBE_SECONDS = 120.0  # longest time of one probe; the first use of a GPU loads kernels
LEAST_FREE = 4e9  # bytes of free memory; SAM 2.1 large needs about as much


@dataclass(frozen=True, slots=True)
class Driver:
    """The report of nvidia-smi. Empty if it is not installed.

    Attributes:
        count: GPUs of the machine, including those that are not visible to this process.
        mig: whether MIG is enabled.
        instances: number of MIG instances.
    """

    version: str = ""
    count: int = 0
    mig: bool = False
    instances: int = 0


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs that PyTorch finds, and the results of their probes."""

    seen: dict[str, Any]
    probes: tuple[dict[str, Any], ...]
    driver: Driver

    @property
    def working(self) -> list[int]:
        """The indices of the GPUs that computed a correct result."""
        return [k for k, probe in enumerate(self.probes) if _problem(probe) == ""]


def find_gpus() -> Gpus:
    """Describe the GPUs and compute on each of them, in separate processes."""
    seen = _probe()
    with ThreadPoolExecutor(max_workers=8) as pool:
        probes = tuple(pool.map(_probe, range(seen.get("count", 0))))
    return Gpus(seen, probes, _driver())


def check_gpus(gpus: Gpus, run: RunConfig) -> list[Check]:
    """Check the device that the settings name, then every GPU."""
    return [_check_device(gpus, run), *(_check_gpu(gpus, k, run) for k in range(len(gpus.probes)))]


def used_gpus(gpus: Gpus, device: str) -> list[int]:
    """Return the indices of the GPUs that a run on this device uses. Empty on the CPU."""
    kind, _, index = device.partition(":")
    if kind == "auto":
        return gpus.working
    if kind != "cuda":
        return []
    return [k for k in gpus.working if not index or index == str(k)]


def _check_device(gpus: Gpus, run: RunConfig) -> Check:
    name = "device"
    if "error" in gpus.seen:
        return failed(name, f"PyTorch cannot list the GPUs: {gpus.seen['error']}", "Install torch again.")
    try:
        if run.engine == "local":
            resolve_device(run.device)
    except UsageError as error:
        advice = f"{_why_none(gpus)} Choose an existing device with --device, such as --device cpu."
        return failed(name, str(error), advice.strip())
    used = used_gpus(gpus, run.device)
    if used:
        which = f"GPU {used[0]}" if len(used) == 1 else f"{len(used)} GPUs"
        found = f"run.device {run.device}: runs on {which} in {_precision(gpus, run)}. {_surroundings(gpus)}"
        return ok(name, found.strip())
    if gpus.probes and run.device != "cpu":
        advice = "See the GPUs below. To run without them, choose --device cpu."
        return failed(name, f"run.device {run.device}: none of its GPUs works.", advice)
    if run.device == "auto":
        found = "No GPU. The run uses the CPU, which is many times slower with the full-size models."
        return warning(name, found, _why_none(gpus) or "Use a machine with a GPU, or choose a small model.")
    if run.device != "cpu":  # with Ray, workers may be on other machines
        found = f"run.device {run.device}: this machine has no GPU; Ray needs one on another machine."
        return warning(name, found, "Run `ovseg-batch doctor` on the machines of the cluster.")
    return ok(name, "run.device cpu: runs on the CPU.")


def _check_gpu(gpus: Gpus, index: int, run: RunConfig) -> Check:
    probe, name = gpus.probes[index], f"gpu {index}"
    problem = _problem(probe)
    if problem:
        advice = (
            "See `nvidia-smi` for other processes and errors; restart the driver or the machine. "
            f"To exclude it, list the other GPUs in {VISIBLE_DEVICES}."
        )
        needed = run.device == f"cuda:{index}" or not gpus.working
        unused = run.device == "cpu" or run.device not in ("auto", "cuda", f"cuda:{index}")
        report = failed if needed and not unused else warning
        return report(name, f"does not compute: {problem}", advice)
    real = probe["major"] >= HALF_SINCE or bool(gpus.seen.get("hip"))
    found = (
        f"{probe['name']}, compute capability {probe['major']}.{probe['minor']}, {size(probe['free'])} free of "
        f"{size(probe['total'])}, {'bf16 in hardware' if real else 'no bf16 in hardware'}; computes correctly."
    )
    if not real:
        return warning(name, found, "Leave run.precision at auto, or set it to fp16: this GPU only emulates bf16.")
    if probe["free"] < LEAST_FREE:
        return warning(name, found, "See `nvidia-smi`: end the processes that use its memory, or lower run.batch_size.")
    return ok(name, found)


def _precision(gpus: Gpus, run: RunConfig) -> str:
    """Return the precision of the models. `auto` is equal for all GPUs, so that they compute the same masks."""
    if run.precision != "auto":
        return run.precision
    real = all(gpus.probes[k]["major"] >= HALF_SINCE for k in gpus.working)
    return "bf16" if real or gpus.seen.get("hip") else "fp16"


def _problem(probe: dict[str, Any]) -> str:
    """Return why a GPU cannot be used. Empty if it can."""
    if "error" in probe:
        return str(probe["error"])
    return "" if probe["right"] else "a matrix product has wrong values; the hardware or the driver is faulty."


def _surroundings(gpus: Gpus) -> str:
    """Describe the driver, MIG and the visible devices in sentences."""
    driver, parts = gpus.driver, []
    newest = gpus.seen.get("driver_cuda", 0)
    serves = f"serves CUDA {newest // 1000}.{newest % 1000 // 10}" if newest else ""
    if driver.version or serves:
        parts.append(" ".join(filter(None, ["Driver", driver.version, serves])) + ".")
    if driver.mig:
        parts.append(
            f"MIG is on ({counted(driver.instances, 'instance')}); PyTorch uses one instance in a process. "
            f"Name the instances in {VISIBLE_DEVICES}."
        )
    if VISIBLE_DEVICES in os.environ:
        parts.append(f"{VISIBLE_DEVICES}={os.environ[VISIBLE_DEVICES]!r} limits the GPUs.")
    return " ".join(parts)


def _why_none(gpus: Gpus) -> str:
    """Return why PyTorch finds fewer GPUs than nvidia-smi, and what to do."""
    if gpus.driver.count and not (gpus.seen.get("cuda") or gpus.seen.get("hip")):
        listed = counted(gpus.driver.count, "GPU")
        return f"nvidia-smi lists {listed}, but this torch is for the CPU only: install a CUDA build."
    if VISIBLE_DEVICES in os.environ and gpus.driver.count > gpus.seen.get("count", 0):
        return f"{VISIBLE_DEVICES}={os.environ[VISIBLE_DEVICES]!r} hides GPUs: change or unset it."
    if gpus.driver.count and gpus.seen.get("reason"):
        return f"nvidia-smi lists {counted(gpus.driver.count, 'GPU')}, but PyTorch reports: {gpus.seen['reason']}"
    return ""


def _probe(index: int | None = None) -> dict[str, Any]:
    """Run the probe for one GPU, or for all. Return its output, or `error`."""
    command = [sys.executable, "-P", str(PROBE), *([] if index is None else [str(index)])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {PROBE_SECONDS:.0f} s"}
    except OSError as error:
        return {"error": f"{sys.executable} cannot be started: {error.strerror}"}
    with contextlib.suppress(ValueError, IndexError):
        return dict(json.loads(done.stdout.splitlines()[-1]))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"error": f"the process ended with {done.returncode}: {last}"}


def _driver() -> Driver:
    """Return nvidia-smi's report of the driver and MIG."""
    rows = [line.split(",") for line in _nvidia_smi("--query-gpu=driver_version,mig.mode.current")]
    if not rows:
        return Driver()
    mig = any(row[-1].strip().lower() == "enabled" for row in rows)
    instances = sum(line.strip().startswith("MIG ") for line in _nvidia_smi("-L")) if mig else 0
    return Driver(rows[0][0].strip(), len(rows), mig, instances)


def _nvidia_smi(what: str) -> Sequence[str]:
    """Return the output lines of nvidia-smi. Empty if it is not installed or fails."""
    options = [what, "--format=csv,noheader"] if what.startswith("--query") else [what]
    try:
        done = subprocess.run(["nvidia-smi", *options], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
