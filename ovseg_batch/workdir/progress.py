"""The progress of a run, computed from its commits. No process of the run is needed, and no model is imported."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ovseg_batch.workdir.findings import Findings, read_findings
from ovseg_batch.workdir.store import StageStore, Workdir


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The progress of one stage according to its commits."""

    name: str
    folder: str
    shards: int
    shards_done: int
    rows: int
    ok: int
    failed: dict[str, int]
    seconds: float

    @property
    def complete(self) -> bool:
        return self.shards_done == self.shards


def stage_status(store: StageStore, shards: int) -> StageStatus:
    """Sum the valid commits among the first `shards` shards."""
    commits = [commit for commit in store.commits() if commit.shard < shards]
    failed: Counter[str] = Counter()
    for commit in commits:
        failed.update(commit.failed)
    return StageStatus(
        name=store.stage,
        folder=store.folder.name,
        shards=shards,
        shards_done=len(commits),
        rows=sum(commit.rows for commit in commits),
        ok=sum(commit.ok for commit in commits),
        failed=dict(sorted(failed.items())),
        seconds=round(sum(commit.seconds for commit in commits), 3),
    )


def duration(seconds: float) -> str:
    """Return a duration as text, such as `42 s`, `3 min 05 s` or `2 h 07 min`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {left:02} s" if minutes else f"{left} s"


def pace(per_second: float) -> str:
    """Return a speed with at least two significant digits: `12.3`, `0.41`, `0.037`."""
    return f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2g}"


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as text, such as `0-2, 5, 7-9`."""
    parts: list[str] = []
    start = previous = numbers[0]
    for number in [*numbers[1:], None]:
        if number is None or number != previous + 1:
            parts.append(f"{start}" if start == previous else f"{start}-{previous}")
            start = number if number is not None else start
        previous = number if number is not None else previous
    return ", ".join(parts)


def watch(workdir: Workdir, every: float) -> Iterator[dict[str, Any]]:
    """Yield the state of a run every `every` seconds until the run is complete.

    A stage that has progressed since the first state also has `images_per_second` and `eta_seconds`.

    Raises:
        UsageError: there is no run in that folder.
    """
    begun, first = time.monotonic(), None
    while True:
        state = status(workdir)
        first = first or {stage["folder"]: stage["rows"] for stage in state["stages"]}
        for stage in state["stages"]:
            new = stage["rows"] - first.get(stage["folder"], 0)
            if new and stage["shards_done"] != stage["shards"]:
                stage["images_per_second"] = new / (time.monotonic() - begun)
                stage["eta_seconds"] = (state["images"] - stage["rows"]) / stage["images_per_second"]
        yield state
        if state["complete"]:
            return
        time.sleep(every)


def status(workdir: Workdir) -> dict[str, Any]:
    """Return the state of the latest run of a workdir. No process of the run is needed.

    Returns:
        Among others: `embedded_models`, the settings that name a small model of the package; `label_images`, the number
        of images with a mask of each label; and `edits`, the numbers of edited and of unchanged images. The last two
        are None while the run is not complete, and for outputs of older versions.

    Raises:
        UsageError: there is no run in that folder.
    """
    record = workdir.read_plan()
    stages = [stage_status(store, record["shards"]) for store in workdir.stores()]
    complete = all(stage.complete for stage in stages)
    found = (read_findings(workdir) if complete else None) or Findings(0)
    edits = None if found.edits is None else {**asdict(found.edits), "unchanged": found.edits.unchanged}
    return {
        "workdir": str(workdir.root),
        "images": record["rows"],
        "shards": record["shards"],
        "complete": complete,
        "annotations": str(workdir.annotations) if complete else None,
        "embedded_models": record.get("embedded_models", []),
        "label_images": found.label_images,
        "edits": edits,
        "stages": [asdict(stage) for stage in stages],
    }
