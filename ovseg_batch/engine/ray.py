"""Runs the missing shards of one stage on a Ray cluster, with Ray Data.

Shard numbers go in, commits come out; images, logits and masks never pass through Ray's object store. The workdir and
the images must be reachable under the same paths from every node. An actor holds one watched worker, as on one
machine, so an image that kills costs its row; an actor or a node that dies costs the shard in flight, and Ray gives it
to another.
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
from ovseg_batch.types import Commit

log = logging.getLogger(__name__)

LIVES = 10  # nodes or actors that a shard may cost
PATIENCE = 20  # seconds to wait for a cluster's head
NO_DEVICE_SECONDS = 20  # that an actor without a usable GPU keeps a shard

#: GPUs, as Ray names them, that do not multiply bf16 in hardware.
WITHOUT_BF16 = frozenset({"K20", "K80", "P4", "P100", "T4", "V100"})


def connect() -> dict[str, float]:
    """Join the cluster named by `RAY_ADDRESS`, or start one on this machine; its resources.

    Raises:
        UsageError: Ray is not installed, or the cluster is not there.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install 'ovseg-batch[ray]'.") from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"  # else Ray looks for one that may be long gone
        try:
            _knock(address)
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except OSError as error:
            raise UsageError(f"Cannot reach the Ray cluster of RAY_ADDRESS={address}: {error}") from None
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def half_precision(resources: Mapping[str, float]) -> str:
    """Return `bf16` where every kind of GPU in the cluster multiplies it in hardware, otherwise `fp16`."""
    kinds = {name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")}
    return "fp16" if kinds & WITHOUT_BF16 else "bf16"


def _knock(address: str) -> None:
    """See that somebody listens at `host:port`; Ray itself would try for many minutes before it said so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors of a stage: what one computes on and sets aside, and how many (None: as many as fit)."""

    device: str
    cpus: float
    gpus: float
    workers: int | None = None

    def fits(self, resources: Mapping[str, float]) -> bool:
        """Whether one actor has room on a node with these resources."""
        return resources.get("CPU", 0) >= self.cpus and resources.get("GPU", 0) >= self.gpus

    def size(self, resources: Mapping[str, float]) -> int:
        """How many actors a cluster with these resources holds."""
        if self.workers:
            return self.workers
        room = [resources.get("CPU", 0) // self.cpus]
        if self.gpus:
            room.append(resources.get("GPU", 0) // 1 * (1 // self.gpus))
        return max(1, int(min(room)))


def run_stage(job: StageJob, shards: Sequence[int], pool: Pool) -> Iterator[Commit]:
    """Compute the shards on a pool of actors, yielding commits as they are made.

    Raises:
        Interrupted: after the first SIGINT or SIGTERM, once the shards in flight are committed; a second stops at once.
        OvsegError: what a stage raised on a node; workers or nodes die again and again at one shard.
    """
    import ray.data
    import ray.exceptions

    resources = connect()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
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
    left = list(shards)
    with stop_on_signal(marker.touch) as stop:
        try:
            while left:
                left = yield from _pass(job, left, pool, pool.size(resources), marker)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise OvsegError(f"Ray gave up: {reason}. What is committed stays; run again.") from error
        finally:
            marker.unlink(missing_ok=True)
        if stop.is_set():
            raise Interrupted


def _pass(
    job: StageJob, shards: Sequence[int], pool: Pool, actors: int, marker: Path
) -> Generator[Commit, None, list[int]]:
    """Compute the shards on a new pool of actors, and return those that fell to actors without a usable GPU."""
    import ray.data

    numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    answers = numbers.map_batches(
        _Actor,
        fn_constructor_args=(job, pool.device, marker),
        batch_size=1,
        concurrency=min(actors, len(shards)),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        max_restarts=-1,
        max_task_retries=LIVES,
    )
    left: list[int] = []
    commits = 0
    for row in answers.iter_rows():
        answer = json.loads(row["answer"])
        if "error" in answer:
            raise OvsegError(f"{answer['error']} (on {answer['host']}). What is committed stays; run again.")
        if "no_device" in answer:
            log.warning("a GPU of %s is left out: %s", answer["host"], answer["no_device"])
            left.append(answer["shard"])
            if len(left) == len(shards):
                raise NoDeviceLeft(f"{answer['no_device']} (on {answer['host']})")
        if "commit" in answer:
            commits += 1
            yield Commit.from_record(answer["commit"])
    return left if commits and not marker.exists() else []


class _Actor:
    """One actor: a pool of one worker."""

    def __init__(self, job: StageJob, device: str, marker: Path) -> None:
        self._marker = marker
        self._workers = WorkerPool(job, [device], threading.Event())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = [self._compute(int(shard)) for shard in batch["shard"]]
        return {"answer": [json.dumps(answer) for answer in answers]}

    def _compute(self, shard: int) -> dict[str, Any]:
        """Return the commit; or an error as a value, since Ray would wrap it; or nothing once the marker exists."""
        if self._marker.exists():
            return {}
        host = socket.gethostname()
        try:
            [commit] = self._workers.run([shard])
        except NoDeviceLeft as error:
            time.sleep(NO_DEVICE_SECONDS)  # an actor that fails at once would take every shard from the others
            return {"no_device": str(error), "host": host, "shard": shard}
        except (OvsegError, OSError, RuntimeError) as error:
            return {"error": f"{error}", "host": host}
        return {"commit": commit.to_record()}
