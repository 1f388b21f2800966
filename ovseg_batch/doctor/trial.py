"""A trial: a few images of INPUT through every stage, and what the whole INPUT takes by their figures.

The stages run in this process, in a temporary workdir on the file system of the real one. A worker of a real run has
its own process; it computes the same in the same way, so its speed is that of the trial.
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

NAMED = 3  # failed images that a sentence names


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage takes for an image, without loading models and without the warm-up.

    Attributes:
        milliseconds: an image, on one worker.
        memory: peak bytes of the process.
        gpu_memory: peak bytes of tensors on the GPU; None on a CPU.
        written: bytes an image.
    """

    name: str
    milliseconds: float
    memory: int
    gpu_memory: int | None
    written: float


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image of the trial that failed, the stage that failed it, and why."""

    key: str
    stage: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Pace:
    """Where a run computes, and how many workers count for its speed.

    Attributes:
        device: of the trial, such as `cpu` or `cuda:0`.
        factor: how many times faster than the trial the run is.
        stated: the same in words.
    """

    device: str
    factor: float
    stated: str


@dataclass(frozen=True, slots=True)
class Trial:
    """The figures of a trial, and what they mean for the whole INPUT.

    Attributes:
        images: timed ones; warm_up: others before them.
        listed: images of the whole INPUT.
        written: bytes an image, over all stages and with the outputs.
        seconds, bytes: what the whole INPUT takes.
    """

    device: str
    images: int
    warm_up: int
    listed: int
    stages: tuple[StageCost, ...]
    failures: tuple[FailedImage, ...]
    workers: str
    images_per_second: float
    seconds: float
    written: float
    bytes: int

    def to_record(self) -> dict[str, Any]:
        """Return the trial as plain values, for JSON."""
        return asdict(self)


def try_run(
    inputs: Sequence[str], workdir: Path, config: Config, pace: Pace, images: int, say: Callable[[str], None]
) -> tuple[list[Check], Trial | None]:
    """Run a few images through every stage. Removes all that it wrote, and reports every error as a failed check.

    Args:
        inputs: as `run` takes them.
        workdir: of the planned run; it is not changed.
        images: how many to time.
        say: receives one line before each slow step.

    Raises:
        Interrupted, KeyboardInterrupt: the user stopped it.
    """
    checks: list[Check] = []
    try:
        make_vocabulary(config)
        with tempfile.TemporaryDirectory(prefix="ovseg-doctor-") as folder:
            say(f"listing {', '.join(inputs)}")
            listed, check = _list(inputs, Workdir(workdir), config, Path(folder))
            checks.append(check)
            with scratch_folder(nearest_folder(workdir)) as scratch:
                sample = write_sample(listed, scratch / "sample.parquet", images)
                say(f"running {sample.timed} of {sample.listed} images, and {sample.warm_up} before them as a warm-up")
                trial = _measure(scratch, sample, config, pace)
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
    except Exception as error:  # whatever a model raises must not end the report
        advice = "A run would stop here too. Check the weights and the settings that the message names."
        return [*checks, failed("trial", one_line(error), advice)], None
    return [*checks, _judge(trial)], trial


def _list(inputs: Sequence[str], workdir: Workdir, config: Config, folder: Path) -> tuple[Path, Check]:
    """List INPUT as `run` does; return its manifest."""
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


def _measure(scratch: Path, sample: Sample, config: Config, pace: Pace) -> Trial:
    """Run the sample and compute what an image costs."""
    changed = {"device": pace.device, "engine": "local", "workers": 0, "metrics_file": None, "max_failure_rate": 1.0}
    run = config.run.model_copy(update=changed)
    workdir = Workdir(scratch / "run")
    with peak_memory(torch.device(pace.device)) as peaks:
        pipeline.run([str(scratch / "sample.parquet")], workdir, config.model_copy(update={"run": run}), progress=False)
    stores = workdir.stores()
    stages = tuple(_cost(store, sample, peaks) for store in stores)
    failures = tuple(
        FailedImage(key.removeprefix("warm-up/"), stage, code, message)
        for _, key, stage, code, message in failed_rows(Manifest.open(workdir.manifest), stores)
    )
    written = sum(stage.written for stage in stages) + _output_bytes(workdir) / (sample.warm_up + sample.timed)
    speed = pace.factor * 1000 / max(sum(stage.milliseconds for stage in stages), 1e-6)
    return Trial(
        device=pace.device,
        images=sample.timed,
        warm_up=sample.warm_up,
        listed=sample.listed,
        stages=stages,
        failures=failures,
        workers=pace.stated,
        images_per_second=round(speed, 4),
        seconds=round(sample.listed / speed, 1),
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
    """Return the bytes of annotations.json that grow with the images."""
    content = json.loads(workdir.annotations.read_bytes())
    return sum(len(json.dumps(content[name])) for name in ("images", "annotations"))


def _judge(trial: Trial) -> Check:
    names = ", ".join(stage.name for stage in trial.stages)
    milliseconds = sum(stage.milliseconds for stage in trial.stages)
    found = f"{trial.images} images through {names}: {milliseconds:.0f} ms an image on {trial.device}."
    if not trial.failures:
        return ok("trial", found)
    keys = {failure.key for failure in trial.failures}
    named = "; ".join(f"{one.key}: {one.stage}: {one.code}: {one.message}" for one in trial.failures[:NAMED])
    text = f"{len(keys)} of {trial.images + trial.warm_up} images failed ({named}{'; …' if len(keys) > NAMED else ''})."
    if len(keys) >= trial.images:
        return failed("trial", text, "Correct the cause that the message names; every image would fail.")
    return warning("trial", text, "A run goes on without such images and lists them in failures.csv.")


def check_trial_memory(trial: Trial, workers: int, total: int) -> list[Check]:
    """Check that the workers of a run fit into the memory together.

    Args:
        total: bytes of memory that all workers may use.
    """
    peak = max(stage.memory for stage in trial.stages)
    found = f"{size(peak)} at the peak of a worker; {workers} worker{'s' if workers > 1 else ''} of {size(total)}."
    if peak * workers > total:
        return [warning("worker memory", found, "Lower run.workers, run.batch_size or run.decode_bytes.")]
    return [ok("worker memory", found)]
