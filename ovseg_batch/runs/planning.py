"""Plan a run: its stages, their folders, missing shards, and disk space."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovseg_batch.engine import ray
from ovseg_batch.engine.job import StageJob
from ovseg_batch.errors import OvsegError, RowError, UsageError
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.io.marks import check_replaceable
from ovseg_batch.io.records import parse_json
from ovseg_batch.io.updating import Changes, update_manifest
from ovseg_batch.models import zoo
from ovseg_batch.models.missing import MissingModels
from ovseg_batch.models.precision import precision, uses_gpu
from ovseg_batch.runs import manifests
from ovseg_batch.runs.meter import are_metrics
from ovseg_batch.runs.needed_models import needed_models, require_models
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import WORDS_ALONE, StagePlan, methods_of, read_limits
from ovseg_batch.stages.edit.plan import needs_prompts
from ovseg_batch.stages.merge.plan import kind_of
from ovseg_batch.stages.registry import competition, make_plan, make_stage, make_vocabulary, resolve, stage_names
from ovseg_batch.workdir.findings import printable
from ovseg_batch.workdir.store import StageStore, Workdir, fingerprint

SAMPLE = 64  # images whose sizes are used to estimate all


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of this run.

    Attributes:
        missing: the shards to compute.
        part: (i, n): of the missing shards only i, i + n, i + 2n, … are computed.
    """

    job: StageJob
    plan: StagePlan
    inputs: dict[str, Any]
    missing: list[int]
    part: tuple[int, int] = (0, 1)

    @property
    def name(self) -> str:
        return self.job.store.stage

    def to_compute(self, absent: Collection[int]) -> list[int]:
        """Return the shards to compute when the stage begins.

        Args:
            absent: shards without a commit now, which may differ from those of the plan: an earlier stage may have
                computed shards again.
        """
        index, count = self.part
        found = {*absent, *(self.missing if self.job.retry else ())}
        return sorted(shard for shard in found if shard % count == index)

    def committed(self, absent: Collection[int], shards: int) -> str:
        """Describe how many shards are committed: those of this part, and all of the run.

        Args:
            absent: shards without a commit.
            shards: of the run.
        """
        index, count = self.part
        whole = f"{shards - len(absent)} of {shards} shards"
        if count == 1:
            return f"{whole} already committed"
        own = range(index, shards, count)
        return (
            f"{len({*own} - {*absent})} of {len(own)} shards of part {index}/{count} already committed ({whole} in all)"
        )

    @property
    def accelerator(self) -> bool:
        """Whether its workers compute on the run's device, or on the CPU."""
        return self.plan.resources.accelerator


def plan(
    config: Config, workdir: Workdir, manifest: Manifest, manifest_path: Path, beside: Sequence[Workdir] = ()
) -> list[PlannedStage]:
    """Return the stages of a config with their missing shards. Loads no model and writes nothing.

    Args:
        beside: other workdirs of the same images. A stage that has searched for words there need not search again.
    """
    planned: list[PlannedStage] = []
    stores: dict[str, StageStore] = {}
    resolved = resolve(config)
    for name in stage_names(config):
        stage_plan = make_plan(resolved, name)
        inputs = {
            "stage": stage_plan.name,
            "version": stage_plan.version,
            "manifest": manifest.origin,
            "upstream": {need: stores[need].fingerprint for need in stage_plan.needs},
            "settings": stage_plan.inputs(),
        }
        upstream = {need: stores[need] for need in stage_plan.needs}
        others = [other.root / "stages" for other in beside]
        store = workdir.stage(name, fingerprint(inputs), manifest.revisions, upstream, others)
        stall = config.run.stall_minutes
        job = StageJob(
            functools.partial(make_stage, resolved, name),
            store,
            manifest_path,
            threads=config.run.threads or _own_threads(),
            stall_seconds=None if stall is None else 60 * stall,
        )
        planned.append(PlannedStage(job, stage_plan, inputs, store.missing(manifest.shards)))
        stores[name] = store
    return planned


def _own_threads() -> int | None:
    """Return the number of threads that the caller has given PyTorch in this process; None where it is not imported."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


@dataclass(frozen=True, slots=True)
class DryRun:
    """What `run` would do.

    Attributes:
        disk: for each stage, bytes that what it has still to do will take, by the sizes of a sample of the images;
            tables of masks and edited images are not counted. None where the content of the images decides.
        free: bytes free where the workdir is or would be.
        changes: what `--update` would take up; None without it, and for a new workdir.
    """

    manifest: Manifest
    stages: list[PlannedStage]
    disk: list[int | None]
    free: int
    changes: Changes | None = None


def dry_run(inputs: Sequence[str], workdir: Workdir, config: Config, update: bool = False) -> DryRun:
    """Return what `run` would do. Nothing is written into the workdir.

    Raises:
        UsageError, OvsegError: as `pipeline.run`.
    """
    if update or manifests.existing_manifest(workdir, inputs, config.manifest) is None:
        manifests.check_inputs(inputs, workdir, config.run.allow_remote)
    config = settle(config)
    with tempfile.TemporaryDirectory(prefix="ovseg-dry-run-") as folder:
        path, changes = _listed(inputs, workdir, config, update, Path(folder))
        manifest = Manifest.open(path)
        check_manifest(manifest, config)
        stages = plan(config, workdir, manifest, workdir.manifest)
        sizes = _sizes(manifest, read_limits(config.run)) if any(planned.missing for planned in stages) else []
        disk = [_disk(planned, manifest, sizes) for planned in stages]
    there = next(path for path in (workdir.root, *workdir.root.absolute().parents) if path.exists())
    return DryRun(manifest, stages, disk, shutil.disk_usage(there).free, changes)


def _listed(
    inputs: Sequence[str], workdir: Workdir, config: Config, update: bool, folder: Path
) -> tuple[Path, Changes | None]:
    """Return the manifest that a run would have, and what `--update` would change in the workdir's own."""
    known = manifests.existing_manifest(workdir, inputs, config.manifest)
    if known is not None and not update:
        return known, None
    fresh = manifests.ready_made_manifest(inputs)
    if fresh is None:
        fresh = folder / "manifest.parquet"
        manifests.list_images(inputs, workdir, fresh, config.manifest, read_limits(config.run).remote)
    if not (update and workdir.manifest.exists()):
        return fresh, None
    copy = folder / "updated.parquet"
    shutil.copyfile(workdir.manifest, copy)
    changes = update_manifest(copy, fresh)
    return copy, changes


def _disk(planned: PlannedStage, manifest: Manifest, sizes: Sequence[tuple[int, int]]) -> int | None:
    each = [planned.plan.estimate_bytes(*size) for size in sizes]
    known = [size for size in each if size is not None]
    if len(known) < len(each):
        return None
    share = len(planned.missing) / max(manifest.shards, 1)
    return round(sum(known) / max(len(known), 1) * manifest.rows * share)


def _sizes(manifest: Manifest, limits: Limits) -> list[tuple[int, int]]:
    """(height, width) of at most `SAMPLE` images spread over the list, from their headers where the list has none."""
    from ovseg_batch.io.images import open_image  # imports Pillow

    sizes = []
    local = replace(limits, remote=None)
    for shard in range(0, manifest.shards, max(1, manifest.shards // SAMPLE)):
        rows = manifest.read_shard(shard)
        for row in rows[:: max(1, len(rows) * manifest.shards // SAMPLE)]:
            if row.width and row.height:
                sizes.append((row.height, row.width))
                continue
            with contextlib.suppress(RowError), open_image(row.path, local) as image:
                sizes.append((image.height, image.width))
    return sizes


def settle(config: Config) -> Config:
    """Check the settings before images are listed, and replace `auto` by the value for this machine.

    A precision of `auto` becomes one precision for all GPUs: each worker sees its own GPU alone.

    Raises:
        UsageError: settings that do not go together, or a device or cluster that is not there.
        MissingModels: models that are not on this machine.
    """
    try:
        resolved = resolve(config)
        for name in stage_names(config):
            make_plan(resolved, name)
    except MissingModels:
        require_models(config)  # one error for all of them
        raise
    run = config.run
    if run.metrics_file:
        check_replaceable(Path(run.metrics_file), are_metrics)
    if run.engine == "local":
        return _with_precision(config, precision("auto", run.device)) if uses_gpu(run.device) else config
    resources = ray.connect()
    device = ("cuda" if resources.get("GPU") else "cpu") if run.device == "auto" else run.device
    if device not in ("cuda", "cpu"):
        raise UsageError(f"run.device: {device} means a GPU of this machine. With run.engine: ray write cuda or cpu.")
    config = config.model_copy(update={"run": run.model_copy(update={"device": device})})
    return _with_precision(config, ray.half_precision(resources) if device == "cuda" else "fp32")


def _with_precision(config: Config, precision: str) -> Config:
    """Replace every precision of `auto`."""
    chosen = {
        name: section.model_copy(update={"precision": precision})
        for name in ("clip", "sam", "dino", "owl", "sam3", "run")
        if (section := getattr(config, name)).precision == "auto"
    }
    return config.model_copy(update=chosen)


def competition_lines(config: Config, listed: bool) -> list[str]:
    """Describe which words compete with the labels, and which are left out because of a label.

    Args:
        config: the settings of a run.
        listed: list the words; otherwise only their number is given.

    Returns:
        No line under settings that name the background themselves.
    """
    if config.background != "auto":
        return []
    found = competition(config)
    if not found.words:
        return ["No words compete with the labels."]
    many = len(found.words)
    words = f": {', '.join(map(printable, found.words))}" if listed else ""
    lines = [f"{many} {'word competes' if many == 1 else 'words compete'} with the labels{words}"]
    for label, words_of in found.left_out.items():
        lines.append(f"left out because of {printable(label)}: {', '.join(map(printable, words_of))}")
    return lines


def kind_lines(config: Config) -> list[str]:
    """Describe which labels have the masks of which method under `method: hybrid` and `merge.rule: kind`."""
    if config.method != "hybrid" or config.merge.rule != "kind":
        return []
    kinds = {label.name: kind_of(label) for label in config.labels}
    lines = []
    for kind, method in zip(("thing", "stuff"), methods_of(config), strict=True):
        names = [printable(name) for name, own in kinds.items() if own == kind]
        lines.append(f"{kind}, from {method}: {', '.join(names) or 'no label'}")
    return lines


def check_manifest(manifest: Manifest, config: Config) -> None:
    """Require that the list of images has the columns that the settings need. Raises UsageError."""
    manifests.check_remote(manifest, config.run.allow_remote)
    if needs_prompts(config) and "edit_prompt" not in manifest.columns:
        raise UsageError(
            f"edit.mode: {config.edit.mode} has no prompt. Say what to paint with edit.prompt (in which {{label}} "
            "stands for the mask's label), with edit.prompts for single labels, or in a column edit_prompt of the list."
        )


def embedded_models(config: Config) -> list[str]:
    """Return the settings that name a small model of the package, which was trained on rendered scenes only.

    Only models that a stage loads count, and only with the weights of the package.
    """
    return [
        f"{needed.kind}.model"
        for needed in needed_models(config)
        if needed.weights is None and zoo.is_embedded(needed.kind, needed.model)
    ]


def code_changes(workdir: Workdir, stages: Sequence[PlannedStage]) -> list[str]:
    """Describe the stages whose code has another version than in the latest run of the workdir.

    Such a stage has another fingerprint, so nothing of it is committed, though settings and images are the same.
    """
    try:
        before = {store.stage: _version_of(store) for store in workdir.stores()}
    except OvsegError:  # no run before, or a plan that cannot be read
        return []
    lines = []
    for planned in stages:
        old, new = before.get(planned.name), planned.plan.version
        if planned.missing and old not in (None, new):
            lines.append(
                f"{planned.name}: its code version was {old} in the run before and is {new} now: computed again"
            )
    return lines


def _version_of(store: StageStore) -> int | None:
    """Return the version of the code that a stage was begun with; None where that cannot be read."""
    try:
        return int(parse_json((store.folder / "stage.json").read_bytes())["inputs"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_plan(
    workdir: Workdir, inputs: Sequence[str], manifest: Manifest, stages: Sequence[PlannedStage], config: Config
) -> None:
    record = {
        "inputs": manifests.absolute(inputs),
        "exclude": list(config.manifest.exclude),
        "dataset": config.manifest.dataset,
        "manifest": manifest.fingerprint,
        "rows": manifest.rows,
        "shards": manifest.shards,
        "revisions": manifest.revisions,
        "labels": [label.name for label in config.labels],
        "stuff": [label.name for label in config.labels if label.kind == "stuff"],
        "background": make_vocabulary(config).has_background
        or (config.method in (*WORDS_ALONE, "hybrid") and config.background != "none"),
        "embedded_models": embedded_models(config),
        "stages": [
            {
                "name": planned.name,
                "folder": planned.job.store.folder.name,
                "fingerprint": planned.job.store.fingerprint,
                "needs": list(planned.job.store.upstream),
            }
            for planned in stages
        ],
    }
    workdir.write_plan(record)
