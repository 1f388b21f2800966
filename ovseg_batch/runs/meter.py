"""Report the progress of a stage: a progress bar, log lines, and a metrics file for Prometheus."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ovseg_batch.engine.flight import InFlight
from ovseg_batch.io.atomic import write_text
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.types import Commit
from ovseg_batch.workdir.progress import duration, pace
from ovseg_batch.workdir.store import StageStore

shards = logging.getLogger(__name__)  # one record for every commit, for programs
log = logging.getLogger("ovseg_batch")

REFRESH_SECONDS = 1.0
FIRST = b"# HELP ovseg_"  # bytes with which a metrics file begins
LINE_SECONDS = 30.0  # interval of lines without a bar

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images{postfix}"

#: name → its help text in the metrics file; all are of one stage
METRICS = {
    "ovseg_images": "Images in the list.",
    "ovseg_images_done": "Images in committed shards, failed ones included.",
    "ovseg_images_failed": "Failed images in committed shards.",
    "ovseg_images_per_second": "Images per second since this command began to compute the stage.",
    "ovseg_busy_ratio": "Share of the time that the workers have spent on committed shards.",
    "ovseg_updated_seconds": "Time of writing, in seconds since 1970.",
}


def are_metrics(file: Path) -> bool:
    """Return whether a file holds the metrics of a run."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(FIRST)) in (FIRST, b"")
    except OSError:
        return False


class Meter:
    """Counts the finished images of a stage and shows them.

    Images of shards in flight count as long as their worker lives; a commit replaces them by its own numbers.

    Args:
        stage: its name.
        place: which of the run's stages it is, as in `stage 1 of 2`.
        rows: images that are finished once this command is done with the stage.
        listed: images in the list.
        before: commits of the shards that are not computed again.
        kept: shard → images of it that are finished already and are not computed again.
        workers: how many compute shards.
        shown: True: a bar; None: a bar where stderr is a terminal; False: none.
        waiting: what happens until the first shard has begun.
        metrics: a file to keep up to date, as Prometheus' textfile collector reads it.
        clock: returns seconds.
    """

    def __init__(
        self,
        stage: str,
        place: str,
        rows: int,
        listed: int,
        before: Iterable[Commit],
        kept: Mapping[int, int],
        workers: int,
        shown: bool | None,
        waiting: str = "loading models and words",
        metrics: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._rows, self._listed, self._kept = stage, rows, listed, dict(kept)
        self._workers, self._waiting, self._metrics, self._clock = workers, waiting, metrics, clock
        self._opened = self._begun = self._written = clock()
        self._worked, self._new = 0.0, 0
        self.failed: Counter[str] = Counter()
        self._committed = sum(self._kept.values())
        for commit in before:
            self._committed += commit.rows
            self.failed.update(commit.failed)
        self._flights: dict[int, InFlight] = {}
        self._lock, self._closed = threading.RLock(), threading.Event()
        from tqdm.auto import tqdm  # imports asyncio, which a finished run does without

        self._bar = tqdm(
            total=rows,
            initial=self._committed,
            desc=f"{stage}, {place}",
            postfix=self._waiting,
            bar_format=BAR,
            disable=None if shown is None else not shown,
            dynamic_ncols=True,
        )
        self._refresher = threading.Thread(target=self._keep_refreshing, daemon=True)

    @classmethod
    def of(
        cls,
        store: StageStore,
        missing: Collection[int],
        manifest: Manifest,
        place: str,
        workers: int,
        shown: bool | None,
        waiting: str,
        metrics: Path | None,
    ) -> Meter:
        """Return the meter of a stage that computes the `missing` shards."""
        commits = {commit.shard: commit for commit in store.commits()}
        before = [commit for shard, commit in commits.items() if shard not in missing]
        return cls(
            store.stage,
            place,
            rows=sum(commit.rows for commit in before) + sum(map(manifest.rows_of, missing)),
            listed=manifest.rows,
            before=before,
            kept={shard: commits[shard].ok for shard in missing if shard in commits},  # `retry` computes the others
            workers=workers,
            shown=shown,
            waiting=waiting,
            metrics=metrics,
        )

    def follow(self, flight: InFlight) -> None:
        """Update the progress of a shard in flight."""
        with self._lock:
            self._begin()
            self._flights[flight.shard] = flight

    def add(self, commit: Commit) -> None:
        """Count a committed shard."""
        with self._lock:
            self._begin()
            self._flights.pop(commit.shard, None)
            new = commit.rows - self._kept.pop(commit.shard, 0)
            self._committed += new
            self._new += new
            self._worked += commit.seconds
            self.failed.update(commit.failed)
            fields: dict[str, Any] = {"event": "shard", "stage": self._stage, "shard": commit.shard}
            fields |= {"rows": commit.rows, "done": self._committed, "images": self._listed}
            fields |= {"failed": self.failed.total(), "busy": round(self.busy, 3), **self._rates()}
        shards.info("%s: shard %d", self._stage, commit.shard, extra={"fields": fields})
        if self._metrics is not None:
            try:
                write_text(self._metrics, self._exposition())
            except OSError as error:  # a metrics file that cannot be written must not stop the run
                log.warning("%s cannot be written any more: %s", self._metrics, error.strerror or error)
                self._metrics = None

    def refresh(self) -> None:
        """Draw the bar; without one, write a line if the last is `LINE_SECONDS` old."""
        with self._lock:
            if not self._bar.disable:
                self._bar.n = self.done
                self._bar.set_postfix_str(self._state(), refresh=False)
                self._bar.refresh()
            elif self._clock() - self._written >= LINE_SECONDS:
                self._write("progress", self._state())

    @property
    def done(self) -> int:
        """Finished images: those of committed shards and those in flight."""
        return self._committed + sum(flight.done for flight in self._flights.values())

    @property
    def speed(self) -> float:
        """Images per second since the first shard of this command began."""
        new = self._new + sum(flight.done for flight in self._flights.values())
        return new / max(self._clock() - self._begun, 1e-9)

    @property
    def busy(self) -> float:
        """Share of their time that the workers have spent on committed shards."""
        return min(1.0, self._worked / max((self._clock() - self._begun) * max(self._workers, 1), 1e-9))

    def _begin(self) -> None:
        """Start to measure the speed, once the models are loaded."""
        if self._waiting:
            self._waiting, self._begun = "", self._clock()

    def _rates(self) -> dict[str, float | None]:
        left = self._rows - self.done
        return {
            "images_per_second": round(self.speed, 4),
            "eta_seconds": round(left / self.speed, 1) if self.speed else None,
        }

    def _state(self) -> str:
        """Return what the bar and the lines add to the number of images."""
        if self._waiting:
            return f"{self._waiting}, {duration(self._clock() - self._opened)}"
        left = self._rates()["eta_seconds"]
        parts = [] if left is None else [f"{pace(self.speed)} images/s", f"{duration(left)} left"]
        return ", ".join([*parts, f"{self._failures} failed"])

    @property
    def _failures(self) -> int:
        return self.failed.total() + sum(flight.failed for flight in self._flights.values())

    def _write(self, event: str, text: str) -> None:
        self._written = self._clock()
        fields = {"event": event, "stage": self._stage, "done": self.done, "images": self._rows}
        fields |= {"failed": self._failures, **self._rates()}
        log.info("%s: %d of %d images, %s", self._stage, self.done, self._rows, text, extra={"fields": fields})

    def _exposition(self) -> str:
        stage = f'stage="{self._stage}"'
        values: dict[str, list[tuple[str, float]]] = {
            "ovseg_images": [(stage, self._listed)],
            "ovseg_images_done": [(stage, self._committed)],
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

    def _keep_refreshing(self) -> None:
        while not self._closed.wait(REFRESH_SECONDS):
            self.refresh()

    def __enter__(self) -> Meter:
        if self._bar.disable:
            log.info("%s: %s", self._stage, self._waiting)
        self._refresher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the committed images: those of shards that were in flight are lost."""
        self._closed.set()
        self._refresher.join()
        with self._lock:
            self._flights.clear()
            text = f"{pace(self.speed)} images/s, {self.failed.total()} failed"
            if self._bar.disable:
                self._write("stage", f"{duration(self._clock() - self._opened)}, {text}")
            else:
                self._bar.n = self.done
                self._bar.set_postfix_str(text, refresh=False)
                self._bar.refresh()
            self._bar.close()
