"""Run a few images of INPUT through every stage, and extrapolate their size on disk to the whole INPUT.

The stages run in this process, in a temporary workdir on the file system of the real one. A worker of a run has a
separate process, but computes in the same way. The time of a run is forecast by `try`, from a random sample.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ovseg_batch.doctor.disk import nearest_folder, scratch_folder
from ovseg_batch.doctor.memory import PeakMemory, peak_memory
from ovseg_batch.doctor.records import Check, failed, ok, one_line, warning
from ovseg_batch.doctor.sample import TIMED_SHARD, Sample, write_sample
from ovseg_batch.errors import DeviceLost, Interrupted, NoDeviceLeft, OvsegError
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.runs import manifests, pipeline
from ovseg_batch.runs.planning import check_manifest
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import read_limits
from ovseg_batch.stages.registry import make_vocabulary
from ovseg_batch.units import counted, size
from ovseg_batch.workdir.results import failed_rows
from ovseg_batch.workdir.store import StageStore, Workdir

NAMED = 3  # failed images that a message names


@dataclass(frozen=True, slots=True)
class StageCost:
    """The cost of one stage per image, without loading models and without the warm-up.

    Attributes:
        milliseconds: time per image on one worker.
        memory: peak memory of the process in bytes.
        gpu_memory: peak memory of tensors on the GPU in bytes. None on a CPU.
        written: bytes per image.
    """

    name: str
    milliseconds: float
    memory: int
    gpu_memory: int | None
    written: float


@dataclass(frozen=True, slots=True)
class FailedImage:
    """A failed image of the trial, the stage, and the reason."""

    key: str
    stage: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Trial:
    """The results of a trial, and the size of the results for the whole INPUT.

    Attributes:
        images, warm_up: numbers of measured images and of warm-up images.
        listed: number of images of the whole INPUT.
        written: bytes per image of all stages and outputs.
        bytes: estimated size for the whole INPUT.
    """

    device: str
    images: int
    warm_up: int
    listed: int
    stages: tuple[StageCost, ...]
    failures: tuple[FailedImage, ...]
    written: float
    bytes: int

    def to_record(self) -> dict[str, Any]:
        """Return the trial as plain values, for JSON."""
        return asdict(self)


def try_run(
    inputs: Sequence[str], workdir: Path, config: Config, device: str, images: int, log_step: Callable[[str], None]
) -> tuple[list[Check], Trial | None]:
    """Run a few images through every stage. Removes all files that it writes, and reports errors as failed checks.

    Args:
        inputs: INPUTs as for `run`.
        workdir: workdir of the planned run. It is not changed.
        device: device of the trial, such as `cpu` or `cuda:0`.
        images: number of images to measure.
        log_step: called with one line before each slow step.

    Raises:
        Interrupted, KeyboardInterrupt: the user stopped the trial.
    """
    checks: list[Check] = []
    try:
        make_vocabulary(config)
        with tempfile.TemporaryDirectory(prefix="ovseg-doctor-") as folder:
            log_step(f"listing {', '.join(inputs)}")
            listed, check = _list(inputs, Workdir(workdir), config, Path(folder))
            checks.append(check)
            with scratch_folder(nearest_folder(workdir)) as scratch:
                sample = write_sample(listed, scratch / "sample.parquet", images)
                log_step(
                    f"running {sample.timed} of {sample.listed} images, and {sample.warm_up} before them as a warm-up"
                )
                trial = _measure(scratch, sample, config, device)
    except (Interrupted, KeyboardInterrupt):
        raise
    except (DeviceLost, NoDeviceLeft) as error:
        advice = "See `nvidia-smi` for errors and other processes, then run `ovseg-batch doctor` again."
        return [*checks, failed("trial", f"The GPU failed during the trial: {error}", advice)], None
    except OvsegError as error:
        advice = "Correct the command or the settings, then run `ovseg-batch doctor` again."
        return [*checks, failed("trial", str(error), advice)], None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        advice = "Correct the cause, or choose another workdir with -o."
        return [*checks, failed("trial", f"{error.strerror or error}{where}.", advice)], None
    except Exception as error:  # an error of a model must not end the report
        advice = "A run would stop here too. Check the weights and the settings that the message names."
        return [*checks, failed("trial", one_line(error), advice)], None
    return [*checks, _judge(trial)], trial


def _list(inputs: Sequence[str], workdir: Workdir, config: Config, folder: Path) -> tuple[Path, Check]:
    """List INPUT as `run` does. Return its manifest and a check."""
    notes: list[str] = []
    listed = manifests.existing_manifest(workdir, inputs, config.manifest) or manifests.ready_made_manifest(inputs)
    if listed is None:
        manifests.check_inputs(inputs, workdir, config.run.allow_remote)
        listed, remote = folder / "manifest.parquet", read_limits(config.run).remote
        notes = manifests.list_images(inputs, workdir, listed, config.manifest, remote).notes()
    manifest = Manifest.open(listed)
    check_manifest(manifest, config)
    found = f"{counted(manifest.rows, 'image')}."
    if notes:
        return listed, warning("input", f"{found} {'; '.join(notes)}.", "Check that INPUT is what you mean.")
    return listed, ok("input", found)


def _measure(scratch: Path, sample: Sample, config: Config, device: str) -> Trial:
    """Run the sample, and compute the cost per image."""
    changed = {"device": device, "engine": "local", "workers": 0, "metrics_file": None, "max_failure_rate": 1.0}
    run = config.run.model_copy(update=changed)
    workdir = Workdir(scratch / "run")
    with peak_memory(torch.device(device)) as peaks:
        pipeline.run([str(scratch / "sample.parquet")], workdir, config.model_copy(update={"run": run}), progress=False)
    stores = workdir.stores()
    stages = tuple(_cost(store, sample, peaks) for store in stores)
    failures = tuple(
        FailedImage(key.removeprefix("warm-up/"), stage, code, message)
        for _, key, stage, code, message in failed_rows(Manifest.open(workdir.manifest), stores)
    )
    written = sum(stage.written for stage in stages) + _output_bytes(workdir) / (sample.warm_up + sample.timed)
    return Trial(
        device=device,
        images=sample.timed,
        warm_up=sample.warm_up,
        listed=sample.listed,
        stages=stages,
        failures=failures,
        written=round(written, 1),
        bytes=round(written * sample.listed),
    )


def _cost(store: StageStore, sample: Sample, peaks: PeakMemory) -> StageCost:
    commit = store.read_commit(TIMED_SHARD)
    if commit is None:
        raise OvsegError(f"The trial has no commit of {store.stage}.")
    return StageCost(
        name=store.stage,
        milliseconds=round(commit.seconds * 1000 / sample.timed, 1),
        memory=peaks.process.get(store.stage, 0),
        gpu_memory=peaks.gpu.get(store.stage),
        written=round(sum(file.bytes for file in commit.files) / sample.timed, 1),
    )


def _output_bytes(workdir: Workdir) -> int:
    """Return the bytes of annotations.json that grow with the number of images."""
    content = json.loads(workdir.annotations.read_bytes())
    return sum(len(json.dumps(content[name])) for name in ("images", "annotations"))


def _judge(trial: Trial) -> Check:
    names = ", ".join(stage.name for stage in trial.stages)
    milliseconds = sum(stage.milliseconds for stage in trial.stages)
    found = f"{counted(trial.images, 'image')} through {names}: {milliseconds:.0f} ms per image on {trial.device}."
    if not trial.failures:
        return ok("trial", found)
    keys = {failure.key for failure in trial.failures}
    named = "; ".join(f"{one.key}: {one.stage}: {one.code}: {one.message}" for one in trial.failures[:NAMED])
    text = f"{len(keys)} of {trial.images + trial.warm_up} images failed ({named}{'; …' if len(keys) > NAMED else ''})."
    if len(keys) >= trial.images:
        return failed("trial", text, "Correct the cause that the message names; every image would fail.")
    return warning("trial", text, "A run continues without such images, and lists them in failures.csv.")


def check_trial_memory(trial: Trial, workers: int, total: int) -> list[Check]:
    """Check that the workers of a run fit into the memory together.

    Args:
        total: bytes of memory for all workers.
    """
    peak = max(stage.memory for stage in trial.stages)
    found = f"{size(peak)} at the peak of a worker; {workers} worker{'s' if workers > 1 else ''} of {size(total)}."
    if peak * workers > total:
        return [warning("worker memory", found, "Lower run.workers, run.batch_size or run.decode_bytes.")]
    return [ok("worker memory", found)]
