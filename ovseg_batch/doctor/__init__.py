"""`ovseg-batch doctor`: check whether a run will work on this machine, and how long it will take.

`packages.py`, `machine.py`, `gpus.py`, `disk.py` and `weights.py` return checks. `trial.py` runs a few images. Modules
are imported late, so that a missing package is reported and not raised.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg_batch.doctor.records import Check, failed, ok, warning
from ovseg_batch.units import counted

if TYPE_CHECKING:
    from ovseg_batch.doctor.gpus import Gpus
    from ovseg_batch.doctor.machine import Limits
    from ovseg_batch.doctor.trial import Trial
    from ovseg_batch.settings import Config


@dataclass(frozen=True, slots=True)
class Request:
    """The planned run.

    Attributes:
        inputs: INPUTs as for `run`. Empty: no trial.
        workdir: the workdir, which need not exist.
        config_file: a YAML file or a preset. None: the defaults.
        overrides: `section.key=value` settings.
        flags: dotted keys → values of other options. None values are ignored.
        images: number of images that the trial measures.
    """

    inputs: tuple[str, ...] = ()
    workdir: Path = Path()
    config_file: Path | None = None
    overrides: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    images: int = 8


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, and the results of the trial, if there was one."""

    checks: tuple[Check, ...]
    trial: Trial | None = None

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not _failures(self.checks)

    def to_record(self) -> dict[str, Any]:
        """Return the diagnosis as plain values, for JSON."""
        trial = None if self.trial is None else self.trial.to_record()
        return {"ok": self.ok, "checks": [check.to_record() for check in self.checks], "trial": trial}


def diagnose(request: Request, log_step: Callable[[str], None] = lambda text: None) -> Diagnosis:
    """Check this machine, the workdir's file system, the weights and the settings. Then run a trial.

    Args:
        log_step: called with one line before each slow step.

    Raises:
        UsageError: the settings cannot be read.
    """
    try:
        from ovseg_batch.doctor import packages
    except ImportError as error:
        advice = f"Run `pip install {error.name}`, then run `ovseg-batch doctor` again."
        return Diagnosis((failed("packages", f"{error.name} is not installed.", advice),))
    checks = packages.check_packages()
    if _failures(checks):
        return Diagnosis((*checks, _cut_short()))
    from ovseg_batch.config import load_config

    config = load_config(request.config_file, request.overrides, request.flags)
    checks += _optional_packages(config)
    log_step("importing the model libraries")
    broken = packages.check_imports()
    if broken:
        return Diagnosis((*checks, *broken, _cut_short()))
    checks.append(packages.check_torch())
    return _examine(request, config, checks, log_step)


def _examine(request: Request, config: Config, checks: list[Check], log_step: Callable[[str], None]) -> Diagnosis:
    """Run the checks that need the settings and the model libraries."""
    from ovseg_batch.doctor import disk, gpus, machine, weights

    log_step("trying the GPUs")
    found, limits = gpus.find_gpus(), machine.control_group()
    on_cpu = not gpus.used_gpus(found, config.run.device)
    checks += gpus.check_gpus(found, config.run)
    workers = max(_workers(config, found), 1)
    checks += [*machine.check_cores(config.run, limits, workers, on_cpu), machine.check_memory(limits)]
    checks += disk.check_disk(request.workdir)
    log_step("reading the weights")
    models = weights.check_weights(config)
    checks += models
    if not _failures(models):
        checks.append(_check_settings(config))
    trial = None
    if request.inputs:
        more, trial = _try(request, config, checks, found, limits, log_step)
        checks += more
    files = trial.listed if trial is not None and config.edit.mode != "none" else 0
    if not any(check.name == "workdir" for check in _failures(checks)):
        checks.append(disk.check_space(request.workdir, None if trial is None else trial.bytes, files))
    return Diagnosis(tuple(checks), trial)


def _try(
    request: Request,
    config: Config,
    checks: Sequence[Check],
    found: Gpus,
    limits: Limits,
    log_step: Callable[[str], None],
) -> tuple[list[Check], Trial | None]:
    """Run the trial, unless a failed check shows that it cannot work."""
    from ovseg_batch.doctor import machine, trial
    from ovseg_batch.doctor.gpus import used_gpus

    if _failures(checks):
        names = ", ".join(check.name for check in _failures(checks))
        return [failed("trial", f"Not run, because these checks failed: {names}.", "Correct them first.")], None
    gpus = used_gpus(found, config.run.device)
    device = f"cuda:{gpus[0]}" if gpus else "cpu"
    more, result = trial.try_run(request.inputs, request.workdir, config, device, request.images, log_step)
    if result is not None:
        total, _ = machine.usable_memory(limits)
        more += trial.check_trial_memory(result, max(_workers(config, found), 1), total)
    return more, result


def _workers(config: Config, found: Gpus) -> int:
    """Return the number of worker processes of a run with these settings on this machine. 0: only its own process."""
    from ovseg_batch.doctor.gpus import used_gpus
    from ovseg_batch.engine.devices import workers_per_gpu

    if config.run.workers is not None:
        return config.run.workers
    used = used_gpus(found, config.run.device)
    if not used:
        return 1
    memory = min(found.probes[k]["total"] for k in used)
    return len(used) * workers_per_gpu(len(os.sched_getaffinity(0)), len(used), memory)


def _optional_packages(config: Config) -> list[Check]:
    """Check the extras that these settings need, and report whether Ray is installed."""
    from ovseg_batch.doctor.packages import check_extra
    from ovseg_batch.settings.edit_modes import modes_that

    checks = check_extra("ray", "run.engine: ray" if config.run.engine == "ray" else "")
    if config.inpaint.offload != "none" and config.edit.mode in modes_that(lambda mode: mode.generated):
        checks += check_extra("offload", f"inpaint.offload: {config.inpaint.offload}")
    return checks


def _check_settings(config: Config) -> Check:
    """Build every stage without loading a model, as a run does before it lists its images."""
    from ovseg_batch.errors import OvsegError
    from ovseg_batch.models import zoo
    from ovseg_batch.settings import Label
    from ovseg_batch.stages.registry import make_stage, resolve, stage_names

    names = stage_names(config)
    tried, checked = names, config
    # a placeholder label that the model supports; edits name labels, so they are not checked with it
    if not config.labels:
        word = (zoo.known_labels(config.clip.model) or ["thing"])[0]
        checked = config.model_copy(update={"labels": (Label(name=word),)})
        tried = tuple(name for name in names if name != "edit")
    try:
        resolved = resolve(checked)
        for name in tried:
            make_stage(resolved, name)
    except OvsegError as error:
        return failed("settings", str(error), "Correct the setting that the message names.")
    labels = counted(len(config.labels), "label") if config.labels else "no labels given"
    return ok("settings", f"Stages {', '.join(names)}; {labels}.")


def _failures(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.status == "failed"]


def _cut_short() -> Check:
    advice = "Install the packages above, then run `ovseg-batch doctor` again."
    return warning("other checks", "Not run: they need packages that are missing, too old or broken.", advice)
