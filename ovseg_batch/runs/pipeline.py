"""Run, retry and query. Progress is read from commits, never from memory."""

from __future__ import annotations

import contextlib
import logging
import operator
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ovseg_batch import failpoints
from ovseg_batch.config import dump_config, load_config
from ovseg_batch.engine.flight import Report
from ovseg_batch.engine.workers import IdleWorkers
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.export.coco import write_coco
from ovseg_batch.export.edited import count_edits, publish_edited
from ovseg_batch.export.failures import write_failures
from ovseg_batch.io.atomic import write_text
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.io.marks import DESCRIPTION
from ovseg_batch.io.tables import TABLE
from ovseg_batch.runs import manifests
from ovseg_batch.runs.cautions import cautions
from ovseg_batch.runs.devices import worker_count, worker_devices, worker_threads
from ovseg_batch.runs.meter import Meter
from ovseg_batch.runs.planning import (
    PlannedStage,
    check_manifest,
    code_changes,
    competition_lines,
    embedded_models,
    kind_lines,
    plan,
    settle,
    write_plan,
)
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import read_limits
from ovseg_batch.stages.registry import make_vocabulary
from ovseg_batch.types import Commit
from ovseg_batch.units import counted, extent
from ovseg_batch.version import __version__
from ovseg_batch.wording import setting, spelled
from ovseg_batch.workdir.findings import Findings
from ovseg_batch.workdir.progress import StageStatus, ranges, stage_status
from ovseg_batch.workdir.results import EDIT, committed_content, failed_rows, mask_stage
from ovseg_batch.workdir.store import Workdir

log = logging.getLogger(__name__)

OUTPUTS = "outputs"  # the part of a run that writes them, in `Outcome.seconds`


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    stages: list[StageStatus]
    images: int = 0
    annotations: int = 0
    failures: int = 0
    annotations_path: Path | None = None
    edited: int | None = None  # edited files; None where nothing was to be edited
    findings: Findings | None = None  # None while the outputs are not written
    redone: dict[str, list[int]] = field(default_factory=dict)
    reused_words: int = 0  # words that earlier runs had searched for, counted per image
    seconds: dict[str, float] = field(default_factory=dict)  # of each stage in this call, and of the outputs


def run(
    inputs: Sequence[str],
    workdir: Workdir,
    config: Config,
    progress: bool | None = None,
    part: tuple[int, int] = (0, 1),
    update: bool = False,
) -> Outcome:
    """Compute the missing shards, then write the outputs at the top of the workdir.

    Args:
        inputs: folders, globs, lists: as `build_manifest` takes them.
        progress: a bar; None: where there is a terminal.
        update: list the inputs again, and take up what is new, changed or gone since.
        part: (i, n): only the shards i, i + n, i + 2n, … The outputs are written by the part that finds all done.

    Raises:
        UsageError: settings or input that cannot mean anything; nothing has been written then.
        OvsegError, OSError: the run cannot continue. Committed shards are kept, and the same command resumes.
        Interrupted: Ctrl-C or SIGTERM.
    """
    if update or manifests.existing_manifest(workdir, inputs, config.manifest) is None:
        manifests.check_inputs(inputs, workdir, config.run.allow_remote)
    config = settle(config)
    _announce(config, workdir)
    workdir.create()
    workdir.remove_leftovers()
    remote = read_limits(config.run).remote
    if update and workdir.manifest.exists():
        manifests.update(inputs, workdir, config.manifest, remote)
    else:
        manifests.prepare_manifest(inputs, workdir, config.manifest, remote)
    manifest = Manifest.open(workdir.manifest)
    check_manifest(manifest, config)
    stages = [replace(one, part=part) for one in plan(config, workdir, manifest, workdir.manifest)]
    _begin(workdir, inputs, manifest, stages, config)
    log.info("%s", extent(manifest.rows, manifest.shards))
    return _execute(workdir, manifest, stages, config, progress)


def _begin(
    workdir: Workdir, inputs: Sequence[str], manifest: Manifest, stages: Sequence[PlannedStage], config: Config
) -> None:
    """Write the plan and the settings of a run, which is the latest of its workdir from now on."""
    with workdir.exclusive():
        for line in code_changes(workdir, stages):
            log.info("%s", line)
        comments = "".join(f"# {line}\n" for line in competition_lines(config, listed=True))
        sealed = workdir.sealed_outputs()
        if sealed is not None and sealed.get("made_of") != _identity(manifest, stages):
            workdir.unseal_outputs()
        write_text(workdir.config, comments + dump_config(config))
        write_plan(workdir, inputs, manifest, stages, config)


def retry(workdir: Workdir, progress: bool | None = None) -> Outcome:
    """Compute only the failed images of a run again.

    Raises:
        UsageError: no run there, or its weights or settings are not what they were.
    """
    record = workdir.read_plan()
    config = settle(load_config(workdir.config, environment={}))
    workdir.remove_leftovers()
    manifests.renew_changed(workdir)
    manifest = Manifest.open(workdir.manifest)
    stages = plan(config, workdir, manifest, workdir.manifest)
    if [planned.job.store.folder.name for planned in stages] != [stage["folder"] for stage in record["stages"]]:
        raise UsageError(f"The models or the code have changed since {workdir.root} was run; run it again.")
    again = []
    for planned in stages:
        failed = [commit.shard for commit in planned.job.store.commits() if commit.failed]
        job = replace(planned.job, retry=True)
        again.append(replace(planned, job=job, missing=sorted({*failed, *planned.missing})))
    return _execute(workdir, manifest, again, config, progress)


def query(
    source: Workdir,
    target: Workdir,
    labels: str | Sequence[Mapping[str, Any]] | None,
    overrides: Sequence[str] = (),
    progress: bool | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Compute masks of other labels from the stored results of a run, in a new workdir. No image is opened.

    Args:
        source: of a run whose stages have kept enough: `dense.cache: features`, proposals, `sam.cache: embeddings`.
        target: gets links to what is kept, and the stages that the words decide.
        labels: in any form of the setting `labels`. None: the run's own.
        overrides: `section.key=value` settings that differ from the run's.
        settings: the same as key → value.

    Raises:
        UsageError: no run there, or it has not kept what the question needs.
    """
    record = source.read_plan()
    if target.root.resolve() == source.root.resolve():
        raise UsageError(f"{spelled('-o', 'workdir=')} is the run's own workdir, {source.root}. Give another one.")
    flags = {"labels": labels, "edit.mode": "none", **(settings or {})}
    config = load_config(source.config, overrides, flags, environment={})
    if config.run.workers is None:  # nothing here can abort a process, and one more takes seconds to start
        config = config.model_copy(update={"run": config.run.model_copy(update={"workers": 0})})
    config = settle(config)
    _announce(config, target)
    manifest = Manifest.open(source.manifest)
    kept = {planned.name: planned for planned in plan(config, source, manifest, source.manifest)}
    for planned in kept.values():
        if planned.missing and planned.plan.reads_images:
            raise UsageError(_not_kept(planned, manifest, source, config))
    target.create()
    target.remove_leftovers()
    manifests.prepare_manifest([str(source.manifest)], target, config.manifest, None)
    for planned in plan(config, target, manifest, target.manifest):
        store = kept[planned.name].job.store
        if planned.missing and store.folder.is_dir():
            planned.job.store.create(planned.inputs)
            planned.job.store.adopt(store)
    stages = plan(config, target, manifest, target.manifest, beside=[source])
    _begin(target, record["inputs"], manifest, stages, config)
    return _execute(target, manifest, stages, config, progress)


def _not_kept(planned: PlannedStage, manifest: Manifest, source: Workdir, config: Config) -> str:
    """Describe why a query cannot be computed, and with which setting the run must be made so that it can."""
    if len(planned.missing) < manifest.shards:
        missing = counted(len(planned.missing), "shard")
        return f"{planned.name} is not finished in {source.root}: {missing} missing. Run it on."
    needed = planned.plan.query_setting(config)
    if needed is not None and operator.attrgetter(needed[0])(config) != needed[1]:
        return (
            f"{source.root} has not kept what other words need of the stage {planned.name}. Run it again with "
            f"{setting(*needed)}. Then you can query any words."
        )
    return (
        f"{source.root} has no {planned.name} of these settings, and that stage reads the images. Query with the "
        "settings of the run, or run with these."
    )


def _execute(
    workdir: Workdir, manifest: Manifest, stages: Sequence[PlannedStage], config: Config, progress: bool | None
) -> Outcome:
    redone: dict[str, list[int]] = {}
    seconds: dict[str, float] = {}
    reused = 0
    with contextlib.ExitStack() as stack:
        if any(planned.missing for planned in stages):
            workdir.unseal_outputs()
        for planned in stages:
            stack.enter_context(planned.job.store.in_use(planned.inputs))
        try:
            with IdleWorkers() as idle:
                for number, planned in enumerate(stages, 1):
                    place = f"stage {number} of {len(stages)}"
                    with _timed(seconds, planned.name):
                        computed = _run_planned(planned, place, manifest, config, progress, idle)
                    redone[planned.name] = computed.shards
                    reused += computed.reused_words
        except OvsegError:
            with _unchanging(workdir, stages):
                if workdir.made_of() == _identity(manifest, stages):
                    _write_failures(workdir, manifest, stages)
            raise
        finally:  # drafts of workers that were killed, also of an earlier run's that outlived their parent
            workdir.remove_leftovers()
        with _timed(seconds, OUTPUTS), _unchanging(workdir, stages):
            outcome = _finish(workdir, manifest, stages, config, redone)
        return replace(outcome, reused_words=reused, seconds=seconds)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time of a part of a run."""
    begun = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begun


@contextlib.contextmanager
def _unchanging(workdir: Workdir, stages: Sequence[PlannedStage]) -> Iterator[None]:
    """Let no other process change the outputs, or the commits that they are written from."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(workdir.exclusive())
        for planned in stages:
            stack.enter_context(planned.job.store.publishing())
        yield


def _identity(manifest: Manifest, stages: Sequence[PlannedStage]) -> list[str]:
    """Return what the outputs of a run are made of, as `Workdir.made_of` does for the latest run."""
    return [manifest.fingerprint, *(planned.job.store.fingerprint for planned in stages)]


def _announce(config: Config, workdir: Workdir) -> None:
    """Log the cautions, a warning about labels that are replaced, and what the settings make of the labels."""
    for caution in (*cautions(config), manifests.replaced_labels(workdir, config)):
        if caution is not None:
            log.warning("warning: %s", caution)
    for line in (*competition_lines(config, listed=False), *kind_lines(config)):
        log.info("%s", line)


@dataclass(frozen=True, slots=True)
class _Computed:
    """The shards that a stage has computed, and `Commit.reused` of them together."""

    shards: list[int]
    reused_words: int = 0


def _run_planned(
    planned: PlannedStage, place: str, manifest: Manifest, config: Config, progress: bool | None, idle: IdleWorkers
) -> _Computed:
    """Compute the missing shards of a stage."""
    store, shards = planned.job.store, manifest.shards
    absent = store.missing(shards)
    missing = planned.to_compute(absent)
    begun = [shard for shard in missing if store.data_path(shard, TABLE).exists()]
    log.info("%s, %s [%s]: %s", planned.name, place, store.folder.name, planned.committed(absent, shards))
    if not missing:
        return _Computed([])
    if begun or len(missing) < shards:
        log.info("%s: computing shards %s", planned.name, ranges(missing))
    run, rows, failed, reused = config.run, 0, Counter[str](), 0
    waiting = "loading models and words" if run.engine == "local" else "starting actors, which report whole shards"
    metrics = Path(run.metrics_file) if run.metrics_file else None
    with Meter.of(store, missing, manifest, place, worker_count(planned, config), progress, waiting, metrics) as meter:
        for commit in _commits(planned, missing, config, meter.follow, idle):
            meter.add(commit)
            rows += commit.rows
            reused += commit.reused
            failed.update(commit.failed)
            _check_budget(planned.name, rows, failed, run.max_failure_rate)
    if reused:
        words = counted(reused, "word")
        log.info("%s: took the results of %s from earlier runs, counted per image", planned.name, words)
    return _Computed(missing, reused)


def _commits(
    planned: PlannedStage, missing: list[int], config: Config, report: Report, idle: IdleWorkers
) -> Iterator[Commit]:
    """Compute the missing shards with the engine that the settings name. Ray reports no images in flight."""
    from ovseg_batch.engine import local, ray

    run, on_gpu = config.run, planned.accelerator and config.run.device != "cpu"
    if run.engine == "local":
        devices = worker_devices(config, planned.plan.resources)
        job = replace(planned.job, threads=worker_threads(planned, devices))
        return local.run_stage(job, missing, devices, run.workers == 0, report, idle)
    share = run.gpus_per_worker.get(planned.name, 1.0) if on_gpu else 0.0
    pool = ray.Pool("cuda" if on_gpu else "cpu", cpus=run.cpus_per_worker, gpus=share, workers=run.workers)
    return ray.run_stage(planned.job, missing, pool)


def _check_budget(stage: str, rows: int, failed: Counter[str], budget: float) -> None:
    bad = sum(failed.values())
    if bad > budget * rows:
        raise OvsegError(
            f"{stage}: {bad} of {rows} images failed ({dict(failed)}), more than run.max_failure_rate: {budget}. "
            "Committed shards are kept. failures.csv lists them. Correct the cause, and run again."
        )


def _finish(
    workdir: Workdir, manifest: Manifest, stages: Sequence[PlannedStage], config: Config, redone: dict[str, list[int]]
) -> Outcome:
    """Write the outputs at the top of the workdir if every shard of every stage is committed."""
    states = [stage_status(planned.job.store, manifest.shards) for planned in stages]
    identity, stores = _identity(manifest, stages), [planned.job.store for planned in stages]
    if workdir.made_of() != identity:
        raise OvsegError(
            f"Another run with other settings or images has begun in {workdir.root} meanwhile, so this one writes no "
            "outputs there. Committed shards are kept. Give the same command again to have its outputs at the top, or "
            "use one workdir for each."
        )
    if unfinished := [state for state in states if not state.complete]:
        (index, count), missing = stages[0].part, unfinished[0].shards - unfinished[0].shards_done
        if count == 1:
            raise OvsegError(
                f"{unfinished[0].name}: {counted(missing, 'shard has', 'shards have')} lost the commit while this run "
                "computed others. Another command or person has removed it. Run the same command again."
            )
        failures = sum(1 for _ in failed_rows(manifest, stores, range(index, manifest.shards, count)))
        return Outcome(stages=states, failures=failures, redone=redone)
    edits = stages[-1].job.store if stages[-1].name == EDIT else None
    sealed, content = workdir.sealed_outputs(), committed_content(stores)
    if sealed is not None and (sealed.get("made_of"), sealed.get("content", content)) == (identity, content):
        log.info("everything was done before")
        edited = publish_edited(workdir, edits)
        return _outcome(states, sealed["counts"], workdir, edited, redone)
    last = mask_stage(stages, lambda planned: planned.name).job.store
    vocabulary = make_vocabulary(config)
    labels = vocabulary.names[1 if vocabulary.has_background else 0 :]
    info = {
        "description": DESCRIPTION,
        "version": __version__,
        "manifest": manifest.fingerprint,
        **({"embedded_models": embedded} if (embedded := embedded_models(config)) else {}),
        "stages": {planned.name: planned.job.store.fingerprint for planned in stages if planned.name != EDIT},
        "settings": {planned.name: planned.inputs["settings"] for planned in stages if planned.name != EDIT},
    }
    path = workdir.annotations
    workdir.unseal_outputs()
    with failpoints.within("export"):
        images, annotations, label_images = write_coco(path, labels, info, manifest, last)
        edited = publish_edited(workdir, edits)
        failures = _write_failures(workdir, manifest, stages)
        found = Findings(images, label_images, None if edits is None else count_edits(edits, config.edit.mode))
        counts = {"annotations": annotations, "failures": failures, **found.to_record()}
        facts = {"made_of": identity, "content": content, "counts": counts}
        workdir.seal_outputs([path, workdir.failures, workdir.manifest], facts)
    return _outcome(states, counts, workdir, edited, redone)


def _outcome(
    states: list[StageStatus],
    counts: Mapping[str, Any],
    workdir: Workdir,
    edited: int | None,
    redone: dict[str, list[int]],
) -> Outcome:
    """Return how a finished run ended, from the counts that its sealed outputs keep."""
    return Outcome(
        states,
        images=counts["images"],
        annotations=counts["annotations"],
        failures=counts["failures"],
        annotations_path=workdir.annotations,
        edited=edited,
        findings=Findings.from_record(counts),
        redone=redone,
    )


def _write_failures(workdir: Workdir, manifest: Manifest, stages: Sequence[PlannedStage]) -> int:
    return write_failures(workdir.failures, failed_rows(manifest, [p.job.store for p in stages]))
