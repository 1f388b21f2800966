"""Try settings on a few images of a list, before a run over all of it.

The folder of a trial is an ordinary workdir. It also holds the manifest of the whole list, that of the sample, and a
record of what was sampled. What other labels need is kept, so that a second trial in the same folder computes only the
stages that its labels and settings decide.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ovseg_batch.errors import UsageError
from ovseg_batch.io.atomic import atomic_path, write_text
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.io.marks import check_replaceable
from ovseg_batch.io.records import parse_json
from ovseg_batch.io.sampled import read_size, sample_rows, write_sample
from ovseg_batch.runs import manifests, pipeline
from ovseg_batch.runs.devices import worker_count
from ovseg_batch.runs.planning import PlannedStage, plan, settle
from ovseg_batch.runs.trying.advice import Advice, advise
from ovseg_batch.runs.trying.disk import Disk, disk_of
from ovseg_batch.runs.trying.forecast import Forecast, Measured, forecast
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import read_limits
from ovseg_batch.stages.registry import make_plan, plans_of, resolve, stage_names
from ovseg_batch.units import counted
from ovseg_batch.wording import spelled
from ovseg_batch.workdir.store import Workdir

LIST, SAMPLE = "try-list.parquet", "try-sample.parquet"  # manifests in the folder of a trial
SHARDS = 8  # of the sample: the interval of the forecast comes from their differences
SIZES = 2_000  # images of the list whose sizes are read

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tried:
    """The result of a trial.

    Attributes:
        images: images of the whole list.
        sampled: images of the trial.
        outcome: how the run of the sample ended.
        forecast: time of the run over the whole list.
        disk: bytes that the run would write.
        advice: warnings, each with what to do.
    """

    images: int
    sampled: int
    outcome: pipeline.Outcome
    forecast: Forecast
    disk: Disk
    advice: tuple[Advice, ...]


@dataclass(slots=True)
class _Record:
    """What the folder of a trial holds.

    Attributes:
        sample: input, number of images and seed.
        listing: seconds that listing the input has taken.
        outputs: seconds per image that the outputs have taken.
        starts: stage → seconds before its first shard.
        sizes: (height, width) of images of the whole list.
    """

    sample: dict[str, Any]
    listing: float = 0.0
    outputs: float = 0.0
    starts: dict[str, float] = field(default_factory=dict)
    sizes: list[Size] = field(default_factory=list)


def try_images(
    inputs: Sequence[str],
    workdir: Workdir,
    config: Config,
    count: int,
    seed: int,
    source: Workdir | None = None,
    progress: bool | None = None,
) -> Tried:
    """Compute a sample of a list of images, and forecast the run over all of it.

    Args:
        inputs: folders, globs, lists, as in `pipeline.run`. Not read if there is a `source`.
        workdir: the folder of the trial. The same call again resumes; other settings compute what they change.
        config: settings of the run over the whole list.
        count: images to draw.
        seed: decides which.
        source: a workdir whose manifest is sampled.

    Raises:
        UsageError: as `pipeline.run`; or the folder holds another sample, or a run that is no trial.
        OvsegError, OSError, Interrupted: as `pipeline.run`.
    """
    record = _open(inputs, workdir, config, count, seed, source)
    config = settle(_on_this_machine(config))
    whole = _list(inputs, workdir, config, source, record)
    sample = workdir.root / SAMPLE
    if not sample.exists():
        write_sample(whole, sample, count, seed, SHARDS)
    listed, drawn = Manifest.open(whole), Manifest.open(sample)
    if not record.sizes:
        limits = read_limits(config.run)
        found = (read_size(row, limits) for row in sample_rows(listed, SIZES, seed))
        record.sizes = [size for size in found if size is not None]
    write_text(workdir.trial, json.dumps(asdict(record)))
    kept = _without_process(keeping(config), workdir, drawn, sample)
    outcome = pipeline.run([str(sample)], workdir, kept, progress)
    stages = plan(kept, workdir, drawn, workdir.manifest)
    _note_times(record, outcome, stages, drawn, config)
    write_text(workdir.trial, json.dumps(asdict(record)))
    measured = _measured(stages, drawn, record, config)
    around = record.listing + record.outputs * listed.rows
    expected = forecast(listed.rows, drawn.rows, measured, around)
    disk = disk_of(config, stages, record.sizes, listed.rows, drawn.rows, workdir)
    return Tried(
        listed.rows,
        drawn.rows,
        outcome,
        expected,
        disk,
        tuple(advise(config, workdir, stages, outcome, measured, disk, listed.rows)),
    )


def _open(
    inputs: Sequence[str], workdir: Workdir, config: Config, count: int, seed: int, source: Workdir | None
) -> _Record:
    """Return the record of the folder, or a new one.

    Raises:
        UsageError: the folder holds another sample, or a run that is no trial.
    """
    listing = config.manifest
    sample = {
        "inputs": [str(source.manifest.absolute())] if source else manifests.absolute(inputs),
        "exclude": list(listing.exclude),
        "dataset": listing.dataset,
        "list": Manifest.open(source.manifest).fingerprint if source else None,
        "count": count,
        "seed": seed,
    }
    other = spelled("-o", "workdir=")
    try:
        record = _Record(**parse_json(workdir.trial.read_bytes()))
    except FileNotFoundError:
        if workdir.plan.exists():
            raise UsageError(f"{workdir.root} is the workdir of a run. Give another folder with {other}.") from None
        for name in (LIST, SAMPLE):  # of a trial that was killed before its record was written
            check_replaceable(workdir.root / name, Manifest.recognises)
            (workdir.root / name).unlink(missing_ok=True)
        return _Record(sample)
    except (ValueError, TypeError):  # written by another version
        raise UsageError(f"{workdir.trial} cannot be read. Give another folder with {other}.") from None
    if record.sample != sample:
        before = record.sample
        raise UsageError(
            f"{workdir.root} holds another sample: {counted(before['count'], 'image')} of "
            f"{', '.join(before['inputs'])}, seed {before['seed']}. Give another folder with {other}, or the same "
            "images, number and seed."
        )
    record.sizes = [(height, width) for height, width in record.sizes]
    return record


def _on_this_machine(config: Config) -> Config:
    """Return the settings without what concerns only the run over the whole list: a cluster, a budget, metrics."""
    update = {"engine": "local", "max_failure_rate": 1.0, "metrics_file": None}
    return config.model_copy(update={"run": config.run.model_copy(update=update)})


def _list(inputs: Sequence[str], workdir: Workdir, config: Config, source: Workdir | None, record: _Record) -> Path:
    """Return the manifest of the whole list. It is written once per folder."""
    if source is not None:
        workdir.create()
        return source.manifest
    path = workdir.root / LIST
    if path.exists():
        return path
    manifests.check_inputs(inputs, workdir, config.run.allow_remote)
    ready_made = manifests.ready_made_manifest(inputs)
    workdir.create()
    begun = time.monotonic()
    if ready_made is None:
        remote = read_limits(config.run).remote
        for note in manifests.list_images(inputs, workdir, path, config.manifest, remote).notes():
            manifests.log.warning("%s", note)
    else:
        with atomic_path(path) as temporary:
            shutil.copyfile(ready_made, temporary)
    record.listing = time.monotonic() - begun
    return path


def keeping(config: Config) -> Config:
    """Return settings that keep what other labels need, as far as the settings allow it."""
    while True:
        for part in plans_of(config):
            if (needed := part.query_setting(config)) is None:
                continue
            section, key = needed[0].split(".")
            if getattr(getattr(config, section), key) == needed[1]:
                continue
            changed = getattr(config, section).model_copy(update={key: needed[1]})
            kept = config.model_copy(update={section: changed})
            if _is_possible(kept):
                config = kept
                break
        else:
            return config


def _is_possible(config: Config) -> bool:
    """Return whether the settings go together."""
    try:
        resolved = resolve(config)
        for name in stage_names(config):
            make_plan(resolved, name)
    except UsageError:
        return False
    return True


def _without_process(config: Config, workdir: Workdir, drawn: Manifest, sample: Path) -> Config:
    """Compute in this process where no image is opened: nothing can abort it, and another process takes seconds."""
    stages = plan(config, workdir, drawn, sample)
    if any(planned.missing and planned.plan.reads_images for planned in stages):
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"workers": 0})})


def _note_times(
    record: _Record, outcome: pipeline.Outcome, stages: Sequence[PlannedStage], drawn: Manifest, config: Config
) -> None:
    """Record how long the stages that were computed took to start, and the outputs to be written.

    A stage that was computed in this process starts faster than in a worker, which a run has: the longest time counts.
    """
    for planned in stages:
        shards = outcome.redone.get(planned.name)
        if not shards:
            continue
        commits = [commit for commit in planned.job.store.commits() if commit.shard in shards]
        at_once = min(worker_count(planned, config), len(commits))
        start = outcome.seconds[planned.name] - sum(commit.seconds for commit in commits) / max(at_once, 1)
        record.starts[planned.name] = max(0.0, start, record.starts.get(planned.name, 0.0))
    outputs = outcome.seconds[pipeline.OUTPUTS] / max(drawn.rows, 1)
    record.outputs = max(record.outputs, outputs)


def _measured(stages: Sequence[PlannedStage], drawn: Manifest, record: _Record, config: Config) -> list[Measured]:
    """Return what each stage has taken, from its commits."""
    limits = read_limits(config.run)
    of_shard = [
        [size for row in drawn.read_shard(shard) if (size := read_size(row, limits)) is not None]
        for shard in range(drawn.shards)
    ]
    sizes = record.sizes or [size for shard in of_shard for size in shard]
    found = []
    for planned in stages:
        seconds = {commit.shard: commit.seconds for commit in planned.job.store.commits()}
        work = [math.fsum(planned.plan.work(*size) for size in shard) for shard in of_shard]
        if not any(work):  # images behind URLs: nothing is known of their sizes
            work = [float(drawn.rows_of(shard)) for shard in range(drawn.shards)]
        each = tuple(planned.plan.work(*size) for size in sizes) or (1.0,)
        found.append(
            Measured(
                planned.name,
                record.starts.get(planned.name, 0.0),
                tuple(seconds.get(shard, 0.0) for shard in range(drawn.shards)),
                tuple(work),
                each,
                max(1, worker_count(planned, config)),
            )
        )
    return found
