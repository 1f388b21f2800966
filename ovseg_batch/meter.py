"""How a stage is going while it runs: a bar for people, lines for log collectors, a file for Prometheus."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from ovseg_batch.io.atomic import write_text
from ovseg_batch.types import Commit

log = logging.getLogger(__name__)  # for programs; people have the bar
complaints = logging.getLogger("ovseg_batch")

#: name → what Prometheus is told that it is; all are of one stage
METRICS = {
    "ovseg_images": "Images in the list.",
    "ovseg_images_done": "Images that the stage has finished, failed ones among them.",
    "ovseg_images_failed": "Images that the stage has failed.",
    "ovseg_images_per_second": "Images finished a second since this command began.",
    "ovseg_busy_ratio": "Share of the time that the workers have spent on shards.",
    "ovseg_updated_seconds": "When this was written, in seconds since 1970.",
}


class Meter:
    """Told of every commit of a stage, it tells others.

    Args:
        stage: its name.
        rows: images in the list.
        before: the stage's commits that are there already.
        workers: how many compute shards.
        shown: True: a bar; None: a bar where there is a terminal; False: none.
        metrics: a file to keep up to date, as Prometheus' textfile collector reads it.
        clock: seconds, from whenever.
    """

    def __init__(
        self,
        stage: str,
        rows: int,
        before: Iterable[Commit],
        workers: int,
        shown: bool | None,
        metrics: Path | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._rows, self._workers, self._metrics, self._clock = stage, rows, workers, metrics, clock
        self._begun, self._worked, self._new = clock(), 0.0, 0
        self.failed: Counter[str] = Counter()
        done = 0
        for commit in before:
            done += commit.rows
            self.failed.update(commit.failed)
        self._done = done
        disable = None if shown is None else not shown
        self._bar = tqdm(total=rows, initial=done, desc=stage, unit="img", disable=disable, smoothing=0.1)

    def add(self, commit: Commit) -> None:
        """A shard has been committed."""
        self._done += commit.rows
        self._new += commit.rows
        self._worked += commit.seconds
        self.failed.update(commit.failed)
        failed = sum(self.failed.values())
        self._bar.set_postfix(failed=failed, busy=f"{self.busy:.0%}", refresh=False)
        self._bar.update(commit.rows)
        told: dict[str, Any] = {"event": "shard", "stage": self._stage, "shard": commit.shard, "rows": commit.rows}
        told |= {"done": self._done, "images": self._rows, "failed": failed}
        told |= {"images_per_second": round(self.speed, 3), "busy": round(self.busy, 3), "eta_seconds": self._eta()}
        log.info("%s: shard %d", self._stage, commit.shard, extra={"fields": told})
        if self._metrics is not None:
            try:
                write_text(self._metrics, self._exposition())
            except OSError as error:  # whoever watches goes without; the night does not
                complaints.warning("%s cannot be written any more: %s", self._metrics, error.strerror or error)
                self._metrics = None

    @property
    def speed(self) -> float:
        """Images a second since this command began."""
        return self._new / max(self._clock() - self._begun, 1e-9)

    @property
    def busy(self) -> float:
        """The share of their time that the workers have spent on shards that are committed."""
        return min(1.0, self._worked / max((self._clock() - self._begun) * max(self._workers, 1), 1e-9))

    def _eta(self) -> float | None:
        return round((self._rows - self._done) / self.speed, 1) if self._new else None

    def _exposition(self) -> str:
        stage = f'stage="{self._stage}"'
        values: dict[str, list[tuple[str, float]]] = {
            "ovseg_images": [(stage, self._rows)],
            "ovseg_images_done": [(stage, self._done)],
            "ovseg_images_failed": [(f'{stage},code="{code}"', n) for code, n in sorted(self.failed.items())],
            "ovseg_images_per_second": [(stage, round(self.speed, 4))],
            "ovseg_busy_ratio": [(stage, round(self.busy, 4))],
            "ovseg_updated_seconds": [(stage, round(time.time(), 3))],
        }
        lines = []
        for name, about in METRICS.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
            lines += [f"{name}{{{labels}}} {value}" for labels, value in values[name]]
        return "\n".join(lines) + "\n"

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
