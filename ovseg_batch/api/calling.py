"""Shared parts of all calls from Python: settings, and checks of the calling process."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovseg_batch.config import load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.settings import Config
from ovseg_batch.settings.section import usable_path
from ovseg_batch.workdir.findings import embedded_note

log = logging.getLogger(__name__)

#: "car; person: person, people", a sequence of such labels or of {name, synonyms, …}, or a mapping of name → synonyms
Labels = str | Sequence[str | Mapping[str, Any]] | Mapping[str, Any]
Settings = Mapping[str, Any]


def load_settings(config: str | Path | None, labels: Labels, settings: Settings | None) -> Config:
    """Merge the arguments of a call into checked settings.

    Raises:
        UsageError: the config cannot be read, a key is unknown, or a value is out of range.
    """
    return load_config(None if config is None else Path(config), (), {"labels": labels, **plain_settings(settings)})


def to_path(path: str | Path) -> Path:
    """Convert an argument to a path.

    Raises:
        UsageError: no file can have the path.
    """
    try:
        return Path(usable_path(str(path)))
    except ValueError as error:
        raise UsageError(f"{path} {error}.") from None


def plain_settings(settings: Settings | None) -> dict[str, Any]:
    """Return the settings with paths as text, as in YAML."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in (settings or {}).items()}


def without_workers(config: Config) -> Config:
    """Return the settings of a run that computes in this process."""
    return config.model_copy(update={"run": config.run.model_copy(update={"engine": "local", "workers": 0})})


def may_start_processes() -> bool:
    """Return whether this process may start others. A daemonic process, such as a task of Celery, may not."""
    return not multiprocessing.current_process().daemon


def fit_to_process(config: Config) -> Config:
    """Return the settings, changed to compute in this process if it may not start workers."""
    if may_start_processes() or config.run.engine != "local" or config.run.workers == 0:
        return config
    log.warning("This process is daemonic and cannot start workers. It computes the images itself (run.workers: 0).")
    return without_workers(config)


def warn_of_embedded_models(config: Config) -> None:
    """Issue a UserWarning if a setting names a small model of the package, trained on rendered scenes only."""
    from ovseg_batch.runs.planning import embedded_models

    if note := embedded_note(embedded_models(config)):
        warnings.warn(note, UserWarning, stacklevel=4)  # this function, the caller, and the caller's decorator
