"""Real faults of a GPU: memory that runs out, and a device-side assert.

Memory: a tensor fills the GPU until half of what the computation took is free. The product must compute in smaller
batches, and give the same results up to the order of sums (fp32).

Assert: a kernel reads outside of its tensor. The product must recognise a lost device, replace the worker, charge no
image, and leave the bytes of an undisturbed run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_checks.configurations import FULL_SAM, QUICK, RANDOM, full_size_config, preset_config
from gpu_checks.pictures import write_pictures
from gpu_checks.records import Options, Report
from ovseg_batch import scenes
from ovseg_batch.engine import local
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.methods.proposals import point_grid
from ovseg_batch.models import zoo
from ovseg_batch.models.device import prepare
from ovseg_batch.models.faults import is_lost, release_memory
from ovseg_batch.models.sam import Sam
from ovseg_batch.runs import planning
from ovseg_batch.runs.planning import PlannedStage
from ovseg_batch.stages.base import Stage, Upstream
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.workdir.store import Workdir
from tests.harness.job import contents

Array = np.ndarray[Any, Any]

ASSERT = "a device-side assert is a lost device"
SHARE = 0.5  # of the memory that a computation took, which the second try finds free
POINTS_PER_SIDE, QUICK_POINTS_PER_SIDE = 8, 6  # in fp32 64 points of SAM 2.1 large take about 2.6 GiB
IMAGES = 8
SIGNS = 0.999  # of the mask logits must keep their sign
LOGITS = 2e-3  # largest difference of CLIP's cosine similarities, which are kept as fp16


def run(report: Report, options: Options) -> None:
    """Check memory first: the assert ends this process for the GPU."""
    prepare(options.device)
    with report.guarded("decoder out of memory"):
        _decoder_out_of_memory(report, options)
    with report.guarded("dense out of memory"):
        _dense_out_of_memory(report, options)
    with report.guarded("lost worker"):
        _lost_worker(report, options)
    with report.guarded(ASSERT):
        _assert_is_recognised(report, torch.device(options.device))


def _decoder_out_of_memory(report: Report, options: Options) -> None:
    spec = zoo.resolve("sam", "demo") if options.quick else zoo.resolve("sam", FULL_SAM, RANDOM)
    side = QUICK_POINTS_PER_SIDE if options.quick else POINTS_PER_SIDE
    device = torch.device(options.device)
    sam = Sam.load(spec, device, "fp32", points=side * side)
    [embedding] = sam.embed([scenes.render(scenes.HELD_OUT_SEEDS[8000]).image])
    points = point_grid(side, embedding.size)

    def predict() -> Array:
        return sam.predict(embedding, points)[0].cpu().numpy()

    wanted, found, messages = _twice(predict, device)
    name = "decoder out of memory"
    report.check(f"{name}: smaller batches", messages[-1] if messages else "no", "yes", bool(messages))
    same = float(((wanted > 0) == (found > 0)).mean()) if wanted.shape == found.shape else 0.0
    report.at_least(f"{name}: same sign of mask logits", same, SIGNS)


def _dense_out_of_memory(report: Report, options: Options) -> None:
    images, width, height = (1, 256, 192) if options.quick else (IMAGES, 512, 384)
    write_pictures(options.folder / "pictures", images, width, height)
    more = {"run.precision": "fp32", "run.batch_size": 256, "dense.templates": "simple4"}
    config = full_size_config(options.device, more, embedded=options.quick)
    planned, manifest = _plan(options.folder / "memory", options.folder / "pictures", config)
    stage = planned.job.make_stage()
    stage.setup(options.device)
    rows = manifest.read_shard(0)

    def process() -> list[RowResult]:
        return list(stage.process(rows, {}))

    wanted, found, messages = _twice(process, torch.device(options.device))
    name = "dense out of memory"
    report.check(f"{name}: smaller batches", messages[-1] if messages else "no", "yes", bool(messages))
    failed = [result for result in found if result.code is not None]
    report.check(f"{name}: failed images", str(len(failed)), "0", not failed)
    pairs = list(zip(wanted, found, strict=True)) if not failed else []
    largest = max((_difference(one, other) for one, other in pairs), default=float("nan"))
    report.at_most(f"{name}: largest difference of logits", largest, LOGITS)


def _difference(one: RowResult, other: RowResult) -> float:
    return float(np.abs(one.arrays["logits"].astype(np.float32) - other.arrays["logits"]).max())


def _twice(compute: Callable[[], Any], device: torch.device) -> tuple[Any, Any, list[str]]:
    """Compute with all of the memory, then with a `SHARE` of what that took; both results, and the log of the second.

    Raises:
        RuntimeError: the first computation already ran short.
    """
    compute()  # loads kernels, whose memory no ballast may take
    release_memory()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with _log("memory is short") as short:
        wanted = compute()
    if short:
        raise RuntimeError(f"the GPU has too little memory for this check: {short[0]}")
    need = torch.cuda.max_memory_allocated(device) - before
    release_memory()
    free, _ = torch.cuda.mem_get_info(device)
    ballast = torch.empty(max(0, free - int(SHARE * need)), dtype=torch.uint8, device=device)
    try:
        with _log("memory is short") as messages:
            found = compute()
    finally:
        del ballast
        release_memory()
    return wanted, found, messages


@contextlib.contextmanager
def _log(text: str) -> Iterator[list[str]]:
    """Collect the product's log messages that contain a text."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                messages.append(record.getMessage())

    logger, handler = logging.getLogger("ovseg_batch"), Collector()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class FaultyStage(Stage):
    """A stage in whose first shard of a run the GPU is lost.

    Args:
        make_stage: makes the stage.
        marker: a file that the first process to reach the fault creates.
    """

    def __init__(self, make_stage: Callable[[], Stage], marker: Path) -> None:
        self._stage, self._marker = make_stage(), marker
        for name in ("name", "version", "needs", "resources", "columns", "arrays", "reads_images"):
            setattr(self, name, getattr(self._stage, name))

    def inputs(self) -> dict[str, Any]:
        return self._stage.inputs()

    def setup(self, device: str) -> None:
        self._device = torch.device(device)
        self._stage.setup(device)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._marker, os.O_CREAT | os.O_EXCL))
            device_side_assert(self._device)
        yield from self._stage.process(rows, upstream)


def device_side_assert(device: torch.device) -> None:
    """Read outside of a tensor in a kernel. A later operation reports the failed assert."""
    with contextlib.suppress(RuntimeError, IndexError):
        table = torch.zeros(16, device=device)
        table.index_select(0, torch.full((16,), 1 << 20, device=device))


def _lost_worker(report: Report, options: Options) -> None:
    """Compute the dense stage in this process, then in a worker process whose GPU is lost on the way."""
    write_scenes(options.folder, scenes.HELD_OUT_SEEDS[8150 : 8150 + (2 if options.quick else 6)])
    more = {"manifest.shard_rows": 2, "run.threads": 1, **QUICK}
    config = preset_config("prompted", options.device, "fp32" if options.quick else "auto", more)
    images, undisturbed, disturbed = (options.folder / name for name in ("images", "undisturbed", "disturbed"))
    planned, _ = _plan(undisturbed, images, config)
    for _ in local.run_stage(planned.job, planned.missing, [options.device], in_process=True):
        pass
    planned, _ = _plan(disturbed, images, config)
    marker = options.folder / "assert-triggered"
    make_stage = functools.partial(FaultyStage, planned.job.make_stage, marker)
    job = dataclasses.replace(planned.job, make_stage=make_stage)
    with _log("another takes over") as replaced:
        commits = list(local.run_stage(job, planned.missing, [options.device]))
    name = "lost worker"
    report.check(f"{name}: replaced", f"{len(replaced)} times", "≥ 1 times", bool(replaced))
    failed = sum(sum(commit.failed.values()) for commit in commits)
    report.check(f"{name}: charged images", str(failed), "0", failed == 0)
    wanted, found = contents(undisturbed), contents(disturbed)
    changed = [file for file in {*wanted, *found} if wanted.get(file) != found.get(file)]
    value = f"{len(wanted)} files, {len(changed)} differ"
    report.check(f"{name}: same bytes as an undisturbed run", value, "0 differ", bool(wanted) and not changed)


def _plan(workdir: Path, images: Path, config: Any) -> tuple[PlannedStage, Manifest]:
    """Return the first stage of a run and the manifest, in a new workdir."""
    made = Workdir(workdir)
    made.create()
    build_manifest([str(images)], made.manifest, config.manifest.shard_rows)
    manifest = Manifest.open(made.manifest)
    planned = planning.plan(config, made, manifest, made.manifest)[0]
    planned.job.store.create(planned.inputs)
    return planned, manifest


def _assert_is_recognised(report: Report, device: torch.device) -> None:
    device_side_assert(device)
    error = None
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError as caught:
        error = caught
    value = "the GPU still computes" if error is None else f"{type(error).__name__}, lost: {is_lost(error)}"
    report.check(ASSERT, value, "lost: True", error is not None and is_lost(error))
