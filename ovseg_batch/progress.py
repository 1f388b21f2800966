"""How far a run is, from what it has committed: right with no process running, and quick, for it imports no model."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ovseg_batch.store import StageStore, Workdir


@dataclass(frozen=True, slots=True)
class StageStatus:
    """What the commits of one stage say."""

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
    """Add up the reliable commits among the first `shards` shards."""
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


def status(workdir: Workdir) -> dict[str, Any]:
    """The state of the latest run of a workdir, right with no process running.

    Raises:
        UsageError: there is no run in that folder.
    """
    record = workdir.read_plan()
    stages = [
        stage_status(StageStore(workdir.root / "stages" / s["folder"], s["name"], s["fingerprint"]), record["shards"])
        for s in record["stages"]
    ]
    complete = all(stage.complete for stage in stages)
    return {
        "workdir": str(workdir.root),
        "images": record["rows"],
        "shards": record["shards"],
        "complete": complete,
        "annotations": str(workdir.annotations) if complete else None,
        "stages": [asdict(stage) for stage in stages],
    }
