"""Time and memory, as the benchmarks take them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from ovseg_batch.io.manifest import Manifest
from ovseg_batch.runs.planning import PlannedStage
from ovseg_batch.stages.shard import run_shard


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    finish(device)
    started = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - started


def run_all(stage: Any, planned: PlannedStage, manifest: Manifest) -> None:
    """Compute all shards, also those that are committed."""
    for shard in range(manifest.shards):
        planned.job.store.uncommit(shard)
        run_shard(stage, planned.job.store, shard, manifest.read_shard(shard))


def measured(arguments: Sequence[str], environment: dict[str, str] | None = None, code: int = 0) -> tuple[float, float]:
    """Return the seconds and the peak resident MiB of one `ovseg-batch` command; a run uses the embedded models."""
    embedded = ["-c", "demo"] if arguments[0] == "run" else []
    command = [sys.executable, "-m", "ovseg_batch", arguments[0], *embedded, *arguments[1:]]
    return measured_process(command, environment, code)


def measured_process(
    command: Sequence[str], environment: dict[str, str] | None = None, code: int = 0
) -> tuple[float, float]:
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, high_water(process.pid))
        time.sleep(0.02)
    if process.returncode != code:
        raise click.ClickException(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, peak


def high_water(pid: int) -> float:
    """MiB that the process has held at most so far. (wait4's figure would count this process's memory at the fork.)"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
