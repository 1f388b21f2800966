"""Compute the missing shards of one stage on a Ray cluster, with Ray Data.

The tasks are shard numbers and the results are commits. Images, logits and masks never pass through Ray's object store.
The workdir and the images must have the same paths on every node. An actor runs one monitored worker, as on a single
machine, so an image that crashes the worker fails only its row. If an actor or a node dies, Ray assigns its shard to
another actor.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.engine.job import StageJob
from ovseg_batch.engine.stopping import stop_on_signal
from ovseg_batch.engine.workers import WorkerPool
from ovseg_batch.errors import Interrupted, NoDeviceLeft, OvsegError, UsageError
from ovseg_batch.io.atomic import temporary_path
from ovseg_batch.types import Commit

log = logging.getLogger(__name__)

MAX_TASK_RETRIES = 10  # actors or nodes that may die at one shard
CONNECT_SECONDS = 20  # longest wait for the head of a cluster
NO_DEVICE_SECONDS = 30  # an actor without a usable GPU waits for this long before it takes a shard

#: Ray's names of GPUs that do not multiply bf16 in hardware.
WITHOUT_BF16 = frozenset({"K20", "K80", "P4", "P100", "T4", "V100"})


def connect() -> dict[str, float]:
    """Connect to the cluster of `RAY_ADDRESS`, or start one on this machine. Return its resources.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("run.engine: ray needs Ray. Run `pip install 'ray[data]'`.") from None
    if not ray.is_initialized():
        # otherwise Ray searches for a cluster that may not exist any more
        address = os.environ.get("RAY_ADDRESS") or "local"
        try:
            _check_reachable(address)
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except OSError as error:
            raise UsageError(f"Cannot reach the Ray cluster of RAY_ADDRESS={address}: {error}") from None
    resources: dict[str, float] = ray.cluster_resources()
    return resources


def half_precision(resources: Mapping[str, float]) -> str:
    """Return `bf16` where every kind of GPU in the cluster multiplies it in hardware, otherwise `fp16`."""
    kinds = {name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")}
    return "fp16" if kinds & WITHOUT_BF16 else "bf16"


def _check_reachable(address: str) -> None:
    """Raise OSError if no process listens at `host:port`. Ray would retry for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors of a stage: device and resources of one actor, and their number (None: as many as fit)."""

    device: str
    cpus: float
    gpus: float
    workers: int | None = None

    def fits(self, resources: Mapping[str, float]) -> bool:
        """Return whether a node with these resources can run one actor."""
        return resources.get("CPU", 0) >= self.cpus and resources.get("GPU", 0) >= self.gpus

    def size(self, resources: Mapping[str, float]) -> int:
        """Return the number of actors that a cluster with these resources can run."""
        if self.workers:
            return self.workers
        room = [resources.get("CPU", 0) // self.cpus]
        if self.gpus:
            room.append(resources.get("GPU", 0) // 1 * (1 // self.gpus))
        return max(1, int(min(room)))


def run_stage(job: StageJob, shards: Sequence[int], pool: Pool) -> Iterator[Commit]:
    """Compute the shards on a pool of actors, and yield each commit as it is made.

    Raises:
        Interrupted: after the first SIGINT or SIGTERM, once the shards in flight are committed; a second stops at once.
        OvsegError: a stage raised an error on a node, or workers or nodes die repeatedly at one shard.
    """
    import ray.data
    import ray.exceptions

    resources = connect()
    nodes: list[dict[str, Any]] = ray.nodes()
    if not any(pool.fits(node["Resources"]) for node in nodes if node["Alive"]):
        log.warning(
            "no node has %g CPUs and %g GPUs (run.cpus_per_worker, run.gpus_per_worker); waiting for one",
            pool.cpus,
            pool.gpus,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    marker = job.store.folder / f".stop-{uuid.uuid4().hex}"
    left, actors = list(shards), min(pool.size(resources), len(shards))
    stop = threading.Event()
    with stop_on_signal(stop, lambda: "the shards in flight", marker.touch):
        try:
            while left:
                left = yield from _pass(job, left, pool, actors, marker)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise OvsegError(
                f"Ray gave up: {reason}. Committed shards are kept. Run the same command again."
            ) from error
        finally:
            marker.unlink(missing_ok=True)
            _report_faults(marker)
        if stop.is_set():
            raise Interrupted


def _pass(
    job: StageJob, shards: Sequence[int], pool: Pool, actors: int, marker: Path
) -> Generator[Commit, None, list[int]]:
    """Compute the shards on a new pool of actors. Return the shards of actors without a usable GPU."""
    import ray.data

    numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    answers = numbers.map_batches(
        _Actor,
        fn_constructor_args=(job, pool.device, marker),
        batch_size=1,
        concurrency=actors,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        max_restarts=-1,
        max_task_retries=MAX_TASK_RETRIES,
    )
    left: list[int] = []
    commits = 0
    for row in answers.iter_rows():
        _report_faults(marker)
        answer = json.loads(row["answer"])
        if "error" in answer:
            raise OvsegError(
                f"{answer['error']} (on {answer['host']}). Committed shards are kept. Run the same command again."
            )
        if "no_device" in answer:
            left.append(answer["shard"])
            if len(left) == len(shards):
                raise NoDeviceLeft(
                    f"No GPU of the cluster is usable: {answer['no_device']}. Committed shards are kept."
                )
        if "commit" in answer:
            commits += 1
            yield Commit.from_record(answer["commit"])
    return left if commits and not marker.exists() else []


def _report_faults(marker: Path) -> None:
    """Log why actors have no usable GPU, and remove the files with these reasons."""
    for fault in marker.parent.glob(f".{marker.name}.*"):
        log.warning("a GPU is left out: %s", fault.read_text(encoding="utf-8"))
        fault.unlink()


class _Actor:
    """An actor: a pool of one worker, which is ready when Ray assigns the first shard.

    An actor with an unusable GPU waits before it takes a shard. Otherwise it would fail at once and take the shards of
    all other actors.
    """

    def __init__(self, job: StageJob, device: str, marker: Path) -> None:
        self._marker, self._host = marker, socket.gethostname()
        self._workers = WorkerPool(job, [device], threading.Event())
        self._error: str | None = None
        try:
            fault = self._workers.open()
        except (OvsegError, OSError, RuntimeError) as error:
            self._error = str(error)
            return
        if fault is not None:
            temporary_path(marker).write_text(f"{fault} (on {self._host})", encoding="utf-8")
            time.sleep(NO_DEVICE_SECONDS)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = [self._compute(int(shard)) for shard in batch["shard"]]
        return {"answer": [json.dumps(answer) for answer in answers]}

    def _compute(self, shard: int) -> dict[str, Any]:
        """Return the commit; or an error as a value, because Ray would wrap it; or nothing if the marker exists."""
        if self._marker.exists():
            return {}
        if self._error is not None:
            return {"error": self._error, "host": self._host}
        try:
            [commit] = self._workers.run([shard])
        except NoDeviceLeft as error:
            time.sleep(NO_DEVICE_SECONDS)
            return {"no_device": f"{error} (on {self._host})", "shard": shard}
        except (OvsegError, OSError, RuntimeError) as error:
            return {"error": f"{error}", "host": self._host}
        return {"commit": commit.to_record()}
