"""Reproduce a published figure: run a method on a data set with its protocol, and evaluate the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch import datasets
from ovseg_batch.config import load_config
from ovseg_batch.datasets import protocols
from ovseg_batch.datasets.protocols import Row
from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.evaluate.run import evaluate
from ovseg_batch.evaluate.truth.datasets import TruthReader
from ovseg_batch.runs import pipeline
from ovseg_batch.settings import Config
from ovseg_batch.stages.registry import resolve
from ovseg_batch.workdir.store import Workdir


@dataclass(frozen=True, slots=True)
class Reproduced:
    """A figure beside the published one.

    Attributes:
        measured: mIoU in per cent.
        model, precision: CLIP or SAM 3, and its precision.
        scored: images that count.
        changed: settings that differ from the protocol, as `key=value`.
    """

    row: Row
    measured: float
    model: str
    precision: str
    scored: int
    outcome: pipeline.Outcome
    changed: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        """Percentage points above the published mIoU. None where the source prints none."""
        return None if self.row.published is None else self.measured - self.row.published


def find_row(name: str) -> Row:
    """Return the row of a name such as `sclip-voc21`.

    Raises:
        UsageError: there is no such row.
    """
    rows = {row.name: row for row in protocols.rows()}
    if name not in rows:
        hint = nearest(name, rows)
        raise UsageError(f"There is no row {name!r}.{hint} `ovseg-batch reproduce --list` shows all rows.")
    return rows[name]


def config_of(row: Row, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> Config:
    """Return the settings of a row: its preset, with the protocol of the data set."""
    chosen = {"protocol": row.method, "labels": f"{datasets.PREFIX}{row.dataset}", **(flags or {})}
    return load_config(protocols.load(row.method).preset, overrides, chosen)


def reproduce(
    row: Row, root: Path, workdir: Workdir, config: Config, overrides: Sequence[str] = (), progress: bool | None = None
) -> Reproduced:
    """Run a row, or the rest of it, and evaluate the run.

    Args:
        root: the folder of the data set, or a folder above it.
        config: settings of the row, as `config_of` returns them.
        overrides: the settings in them that differ from the protocol, for the result.

    Raises:
        UsageError: the data set or its ground truth is not at `root`.
        OvsegError, OSError: as `pipeline.run`.
    """
    dataset = datasets.load(row.dataset)
    TruthReader(dataset, root)
    outcome = pipeline.run([str(root)], workdir, config, progress)
    score = evaluate(workdir, dataset, root).figures()
    resolved = resolve(config)
    model, spec = ("SAM 3", resolved.sam3) if config.method == "sam3" else ("CLIP", resolved.clip)
    precision = resolved.precision(spec)()
    measured = 100 * score["mIoU"]
    changed = tuple(one for one in overrides if one.partition("=")[0] not in row.files)
    return Reproduced(row, measured, model, precision, int(score["images"]), outcome, changed)
