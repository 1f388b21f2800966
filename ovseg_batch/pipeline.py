"""Plan, run and look at a workdir. Everything said about progress is read from commits, never from memory."""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ovseg_batch import __version__, failpoints, intake
from ovseg_batch.config import dump_config, load_config
from ovseg_batch.engine import local, ray
from ovseg_batch.engine.job import StageJob
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.export.coco import write_coco
from ovseg_batch.export.edited import publish_edited
from ovseg_batch.export.failures import write_failures
from ovseg_batch.io.atomic import write_text
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.tables import TABLE
from ovseg_batch.meter import Meter
from ovseg_batch.models import zoo
from ovseg_batch.models.device import resolve_device
from ovseg_batch.progress import StageStatus, stage_status
from ovseg_batch.results import EDIT, failed_rows, finished_rows, mask_stage
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import read_limits
from ovseg_batch.stages.edit import needs_prompts
from ovseg_batch.stages.generated_edits import GENERATED
from ovseg_batch.stages.registry import make_stage, make_vocabulary, stage_names
from ovseg_batch.store import Problem, StageStore, Workdir, fingerprint
from ovseg_batch.types import Commit

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of this run, its folder, and the shards of it that are not committed."""

    job: StageJob
    inputs: dict[str, Any]
    missing: list[int]

    @property
    def name(self) -> str:
        return self.job.store.stage


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    stages: list[StageStatus]
    images: int = 0
    annotations: int = 0
    failures: int = 0
    annotations_path: Path | None = None
    edited: int | None = None  # edited files; None where nothing was to be edited
    redone: dict[str, list[int]] = field(default_factory=dict)


def plan(config: Config, workdir: Workdir, manifest: Manifest, manifest_path: Path) -> list[PlannedStage]:
    """Which stages this config means and what each has still to do. Loads no model and writes nothing."""
    planned: list[PlannedStage] = []
    stores: dict[str, StageStore] = {}
    for name in stage_names(config):
        stage = make_stage(config, name)
        inputs = {
            "stage": stage.name,
            "version": stage.version,
            "manifest": manifest.fingerprint,
            "upstream": {need: stores[need].fingerprint for need in stage.needs},
            "settings": stage.inputs(),
        }
        store = workdir.stage(name, fingerprint(inputs))
        upstream = {need: stores[need] for need in stage.needs}
        threads = config.run.threads or torch.get_num_threads()
        job = StageJob(functools.partial(make_stage, config, name), store, upstream, manifest_path, threads)
        planned.append(PlannedStage(job, inputs, store.missing(manifest.shards)))
        stores[name] = store
    return planned


def dry_run(inputs: Sequence[str], workdir: Workdir, config: Config) -> tuple[Manifest, list[PlannedStage]]:
    """What `run` would do, having written nothing into the workdir."""
    config = _settle(config)
    with tempfile.TemporaryDirectory(prefix="ovseg-dry-run-") as folder:
        existing = intake.existing_manifest(workdir, inputs) or intake.ready_made_manifest(inputs)
        if existing is None:
            existing = Path(folder) / "manifest.parquet"
            build_manifest(inputs, existing, config.manifest.shard_rows, read_limits(config.run).remote)
        manifest = Manifest.open(existing)
        _check_manifest(manifest, config)
        return manifest, plan(config, workdir, manifest, workdir.manifest)


def run(
    inputs: Sequence[str],
    workdir: Workdir,
    config: Config,
    progress: bool | None = None,
    part: tuple[int, int] = (0, 1),
) -> Outcome:
    """Do whatever of the job is not committed yet, then write the outputs at the top of the workdir.

    Args:
        inputs: folders, globs, lists: as `build_manifest` takes them.
        progress: a bar; None: where there is a terminal.
        part: (i, n): only the shards i, i + n, i + 2n, … The outputs are written by the part that finds all done.

    Raises:
        UsageError: settings or input that cannot mean anything; nothing has been written then.
        OvsegError, OSError: the run cannot go on; what is committed stays, and the same command resumes.
        Interrupted: the person asked to stop.
    """
    config = _settle(config)
    workdir.create()
    workdir.remove_leftovers()
    intake.prepare_manifest(inputs, workdir, config.manifest.shard_rows, read_limits(config.run).remote)
    manifest = Manifest.open(workdir.manifest)
    _check_manifest(manifest, config)
    stages = plan(config, workdir, manifest, workdir.manifest)
    write_text(workdir.config, dump_config(config))
    _write_plan(workdir, inputs, manifest, stages, config)
    log.info("%d images in %d shards", manifest.rows, manifest.shards)
    if part[1] > 1:
        ours = [[shard for shard in planned.missing if shard % part[1] == part[0]] for planned in stages]
        stages = [replace(planned, missing=mine) for planned, mine in zip(stages, ours, strict=True)]
    return _execute(workdir, manifest, stages, config, progress)


def retry(workdir: Workdir, progress: bool | None = None) -> Outcome:
    """Try the failed images of a run again, and no others.

    Raises:
        UsageError: no run there, or its weights or settings are not what they were.
    """
    record = workdir.read_plan()
    config = load_config(workdir.config, environment={})
    manifest = Manifest.open(workdir.manifest)
    config = _settle(config)
    workdir.remove_leftovers()
    stages = plan(config, workdir, manifest, workdir.manifest)
    if [planned.job.store.folder.name for planned in stages] != [stage["folder"] for stage in record["stages"]]:
        raise UsageError(f"The models or the code have changed since {workdir.root} was run; give its `run` again.")
    again = []
    for planned in stages:
        failed = [commit.shard for commit in planned.job.store.commits() if commit.failed]
        job = replace(planned.job, retry=True)
        again.append(replace(planned, job=job, missing=sorted({*failed, *planned.missing})))
    return _execute(workdir, manifest, again, config, progress)


def _execute(
    workdir: Workdir, manifest: Manifest, stages: Sequence[PlannedStage], config: Config, progress: bool | None
) -> Outcome:
    redone = {}
    with contextlib.ExitStack() as stack:
        for planned in stages:
            planned.job.store.create(planned.inputs)
            stack.enter_context(planned.job.store.in_use())
        try:
            for planned in stages:
                redone[planned.name] = _run_planned(planned, manifest, config, progress)
        except OvsegError:
            _write_failures(workdir, manifest, stages)
            raise
        finally:  # of workers sent home in the middle of a shard, and of an earlier run's that died after its parent
            workdir.remove_leftovers()
        return _finish(workdir, manifest, stages, config, redone)


def verify(workdir: Workdir, repair: bool = False) -> list[Problem]:
    """What of a run is not as it was committed; with `repair`, the damaged shards lose their commits.

    Raises:
        UsageError: no run there.
    """
    problems = workdir.verify()
    if repair:
        for problem in problems:
            if problem.store is not None and problem.shard is not None:
                problem.store.uncommit(problem.shard)
    return problems


def collect_garbage(workdir: Workdir, delete: bool) -> list[tuple[Path, int]]:
    """Stage folders that the latest run does not use, and their bytes; deleted only when asked.

    Raises:
        UsageError: no run there.
    """
    found = [
        (folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
        for folder in workdir.unused()
    ]
    if delete:
        workdir.remove_leftovers()
        for folder, _ in found:
            workdir.remove(folder)
    return found


def _settle(config: Config) -> Config:
    """See that the settings mean something, before a folder of millions is listed for them; say what `auto` is.

    Raises:
        UsageError: they do not, or the device or the cluster is not there.
    """
    for name in stage_names(config):
        make_stage(config, name)
    run = config.run
    if run.engine == "local":
        resolve_device(run.device)
        return config
    resources = ray.connect()
    device = ("cuda" if resources.get("GPU") else "cpu") if run.device == "auto" else run.device
    kind = ("bf16" if device == "cuda" else "fp32") if run.precision == "auto" else run.precision
    return config.model_copy(update={"run": run.model_copy(update={"device": device, "precision": kind})})


def _check_manifest(manifest: Manifest, config: Config) -> None:
    """See that the list of images has what the settings need of it. Raises UsageError."""
    intake.check_remote(manifest, config.run.allow_remote)
    if needs_prompts(config) and "edit_prompt" not in manifest.columns:
        raise UsageError(
            f"edit.mode: {config.edit.mode} has no prompt. Say what to paint with edit.prompt (in which {{label}} "
            "stands for the mask's label), with edit.prompts for single labels, or in a column edit_prompt of the list."
        )


def cautions(config: Config) -> list[str]:
    """What a person should know before these settings run all night."""
    embedded = [s for s in ("clip", "sam") if zoo.is_embedded(s, getattr(config, s).model)]
    if config.edit.mode in GENERATED and config.inpaint.model == "demo":
        embedded.append("inpaint")
    if not embedded:
        return []
    return [
        f"{' and '.join(f'{s}.model' for s in embedded)}: embedded, for rendered scenes only; on photographs the masks "
        "mean nothing. `ovseg-batch models list` names models for photographs."
    ]


def _devices(config: Config) -> list[str]:
    """One entry per worker; the workers take the visible GPUs in turn."""
    device = str(resolve_device(config.run.device))
    count = torch.cuda.device_count() if device == "cuda" else 0
    workers = config.run.workers or max(count, 1)
    return [f"cuda:{k % count}" if count else device for k in range(workers)]


def _workers(config: Config) -> int:
    """How many shards are computed at once; of a cluster, one if nothing else was said."""
    return max(len(_devices(config)) if config.run.engine == "local" else config.run.workers or 1, 1)


def _run_planned(planned: PlannedStage, manifest: Manifest, config: Config, progress: bool | None) -> list[int]:
    store = planned.job.store
    begun = [shard for shard in planned.missing if store.data_path(shard, TABLE).exists()]
    done = manifest.shards - len(planned.missing)
    log.info("%s [%s]: %d of %d shards already committed", planned.name, store.folder.name, done, manifest.shards)
    if not planned.missing:
        return []
    if done or begun:
        log.info("%s: computing shards %s", planned.name, _ranges(planned.missing))
    run, rows, failed = config.run, 0, Counter[str]()
    metrics = Path(run.metrics_file) if run.metrics_file else None
    with Meter(planned.name, manifest.rows, store.commits(), _workers(config), progress, metrics) as meter:
        for commit in _commits(planned, config):
            meter.add(commit)
            rows += commit.rows
            failed.update(commit.failed)
            _check_budget(planned.name, rows, failed, run.max_failure_rate)
    return planned.missing


def _commits(planned: PlannedStage, config: Config) -> Iterator[Commit]:
    """The missing shards, by the engine that the settings name."""
    run = config.run
    if run.engine == "local":
        return local.run_stage(planned.job, planned.missing, _devices(config), in_process=run.workers == 0)
    share = run.gpus_per_worker.get(planned.name, 1.0) if run.device.startswith("cuda") else 0.0
    pool = ray.Pool(run.device, cpus=run.cpus_per_worker, gpus=share, workers=run.workers)
    return ray.run_stage(planned.job, planned.missing, pool)


def _check_budget(stage: str, rows: int, failed: Counter[str], budget: float) -> None:
    bad = sum(failed.values())
    if bad > budget * rows:
        raise OvsegError(
            f"{stage}: {bad} of {rows} images failed ({dict(failed)}), more than --max-failure-rate {budget}. "
            "What is committed stays. failures.csv lists them; mend the cause, and run again."
        )


def _finish(
    workdir: Workdir, manifest: Manifest, stages: Sequence[PlannedStage], config: Config, redone: dict[str, list[int]]
) -> Outcome:
    states = [stage_status(planned.job.store, manifest.shards) for planned in stages]
    if not all(state.complete for state in states):
        return Outcome(stages=states, redone=redone)
    last = mask_stage(stages, lambda planned: planned.name).job.store
    vocabulary = make_vocabulary(config)
    first_category = 1 if vocabulary.has_background else 0
    info = {
        "description": "masks by ovseg_batch",
        "version": __version__,
        "manifest": manifest.fingerprint,
        "stages": {planned.name: planned.job.store.fingerprint for planned in stages if planned.name != EDIT},
        "settings": {planned.name: planned.inputs["settings"] for planned in stages if planned.name != EDIT},
    }
    path = workdir.annotations
    with failpoints.within("export"):
        images, annotations = write_coco(
            path, vocabulary.names[first_category:], info, lambda: finished_rows(manifest, last)
        )
        edited = publish_edited(workdir, stages[-1].job.store) if stages[-1].name == EDIT else None
        failures = _write_failures(workdir, manifest, stages)
        workdir.seal_outputs([path, workdir.failures, workdir.manifest])
    return Outcome(
        stages=states,
        images=images,
        annotations=annotations,
        failures=failures,
        annotations_path=path,
        edited=edited,
        redone=redone,
    )


def _write_failures(workdir: Workdir, manifest: Manifest, stages: Sequence[PlannedStage]) -> int:
    return write_failures(workdir.failures, failed_rows(manifest, [p.job.store for p in stages]))


def _write_plan(
    workdir: Workdir, inputs: Sequence[str], manifest: Manifest, stages: Sequence[PlannedStage], config: Config
) -> None:
    record = {
        "inputs": intake.absolute(inputs),
        "manifest": manifest.fingerprint,
        "rows": manifest.rows,
        "shards": manifest.shards,
        "labels": [label.name for label in config.labels],
        "background": make_vocabulary(config).has_background,
        "stages": [
            {"name": p.name, "folder": p.job.store.folder.name, "fingerprint": p.job.store.fingerprint} for p in stages
        ],
    }
    workdir.write_plan(record)


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5, 7-9` for the sorted numbers."""
    parts: list[str] = []
    start = previous = numbers[0]
    for number in [*numbers[1:], None]:
        if number is None or number != previous + 1:
            parts.append(f"{start}" if start == previous else f"{start}-{previous}")
            start = number if number is not None else start
        previous = number if number is not None else previous
    return ", ".join(parts)
