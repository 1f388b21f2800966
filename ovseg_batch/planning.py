"""What a run would be: its stages, their folders, what is missing of them, and the disk that they will take."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ovseg_batch import intake
from ovseg_batch.engine import ray
from ovseg_batch.engine.job import StageJob
from ovseg_batch.errors import RowError, UsageError
from ovseg_batch.findings import printable
from ovseg_batch.io.images import Limits, open_image
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.models.device import half_precision, resolve_device
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import read_limits
from ovseg_batch.stages.edit import needs_prompts
from ovseg_batch.stages.registry import competition, make_stage, make_vocabulary, stage_names
from ovseg_batch.store import StageStore, Workdir, fingerprint

SAMPLE = 64  # images whose size stands for all


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of this run, its folder, and the shards of it that are not committed."""

    job: StageJob
    inputs: dict[str, Any]
    missing: list[int]
    accelerator: bool = True  # whether its workers compute on the run's device, or on the CPU

    @property
    def name(self) -> str:
        return self.job.store.stage


def plan(config: Config, workdir: Workdir, manifest: Manifest, manifest_path: Path) -> list[PlannedStage]:
    """Which stages this config means and what each has still to do. Loads no model and writes nothing."""
    planned: list[PlannedStage] = []
    stores: dict[str, StageStore] = {}
    for name in stage_names(config):
        stage = make_stage(config, name)
        inputs = {
            "stage": stage.name,
            "version": stage.version,
            "manifest": manifest.origin,
            "upstream": {need: stores[need].fingerprint for need in stage.needs},
            "settings": stage.inputs(),
        }
        store = workdir.stage(name, fingerprint(inputs), manifest.revisions)
        upstream = {need: stores[need] for need in stage.needs}
        stall = config.run.stall_minutes
        job = StageJob(
            functools.partial(make_stage, config, name),
            store,
            upstream,
            manifest_path,
            threads=config.run.threads or torch.get_num_threads(),
            stall_seconds=None if stall is None else 60 * stall,
        )
        planned.append(PlannedStage(job, inputs, store.missing(manifest.shards), stage.resources.accelerator))
        stores[name] = store
    return planned


@dataclass(frozen=True, slots=True)
class DryRun:
    """What `run` would do.

    Attributes:
        disk: for each stage, bytes that what it has still to do will take, by the sizes of a sample of the images;
            tables of masks and edited images are not counted. None where the content of the images decides.
        free: bytes free where the workdir is or would be.
    """

    manifest: Manifest
    stages: list[PlannedStage]
    disk: list[int | None]
    free: int


def dry_run(inputs: Sequence[str], workdir: Workdir, config: Config) -> DryRun:
    """What `run` would do, having written nothing into the workdir."""
    config = settle(config)
    with tempfile.TemporaryDirectory(prefix="ovseg-dry-run-") as folder:
        existing = intake.existing_manifest(workdir, inputs) or intake.ready_made_manifest(inputs)
        if existing is None:
            existing = Path(folder) / "manifest.parquet"
            build_manifest(inputs, existing, config.manifest.shard_rows, read_limits(config.run).remote)
        manifest = Manifest.open(existing)
        check_manifest(manifest, config)
        stages = plan(config, workdir, manifest, workdir.manifest)
        sizes = _sizes(manifest, read_limits(config.run)) if any(planned.missing for planned in stages) else []
        disk = [_disk(planned, manifest, sizes) for planned in stages]
    there = next(path for path in (workdir.root, *workdir.root.absolute().parents) if path.exists())
    return DryRun(manifest, stages, disk, shutil.disk_usage(there).free)


def _disk(planned: PlannedStage, manifest: Manifest, sizes: Sequence[tuple[int, int]]) -> int | None:
    stage = planned.job.make_stage()
    each = [stage.disk(*size) for size in sizes]
    known = [size for size in each if size is not None]
    if len(known) < len(each):
        return None
    share = len(planned.missing) / max(manifest.shards, 1)
    return round(sum(known) / max(len(known), 1) * manifest.rows * share)


def _sizes(manifest: Manifest, limits: Limits) -> list[tuple[int, int]]:
    """(height, width) of at most `SAMPLE` images spread over the list, from their headers where the list has none."""
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
    """Check the settings before a folder of millions is listed for them, and replace `auto` by what it means here.

    A precision of `auto` becomes one precision for all GPUs: each worker sees its own GPU alone.

    Raises:
        UsageError: settings that do not go together, or a device or cluster that is not there.
    """
    for name in stage_names(config):
        make_stage(config, name)
    run = config.run
    if run.engine == "local":
        on_gpu = resolve_device(run.device).type == "cuda"
        return _with_precision(config, half_precision()) if on_gpu else config
    resources = ray.connect()
    device = ("cuda" if resources.get("GPU") else "cpu") if run.device == "auto" else run.device
    if device not in ("cuda", "cpu"):
        raise UsageError(f"run.device: {device} means a GPU of this machine. With --engine ray write cuda or cpu.")
    config = config.model_copy(update={"run": run.model_copy(update={"device": device})})
    return _with_precision(config, ray.half_precision(resources) if device == "cuda" else "fp32")


def _with_precision(config: Config, precision: str) -> Config:
    """Replace every precision of `auto`."""
    chosen = {
        name: section.model_copy(update={"precision": precision})
        for name in ("clip", "sam", "run")
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


def check_manifest(manifest: Manifest, config: Config) -> None:
    """See that the list of images has what the settings need of it. Raises UsageError."""
    intake.check_remote(manifest, config.run.allow_remote)
    if needs_prompts(config) and "edit_prompt" not in manifest.columns:
        raise UsageError(
            f"edit.mode: {config.edit.mode} has no prompt. Say what to paint with edit.prompt (in which {{label}} "
            "stands for the mask's label), with edit.prompts for single labels, or in a column edit_prompt of the list."
        )


def write_plan(
    workdir: Workdir, inputs: Sequence[str], manifest: Manifest, stages: Sequence[PlannedStage], config: Config
) -> None:
    record = {
        "inputs": intake.absolute(inputs),
        "manifest": manifest.fingerprint,
        "rows": manifest.rows,
        "shards": manifest.shards,
        "revisions": manifest.revisions,
        "labels": [label.name for label in config.labels],
        "background": make_vocabulary(config).has_background,
        "stages": [
            {"name": p.name, "folder": p.job.store.folder.name, "fingerprint": p.job.store.fingerprint} for p in stages
        ],
    }
    workdir.write_plan(record)
