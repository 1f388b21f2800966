"""kill -9 at every failpoint of every scope, and at random moments; writes that fail, and disks that are full."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovseg_batch.failpoints import EXPORT_POINTS, FILE_POINTS, SHARD_POINTS
from tests.harness.crash import Loop
from tests.harness.crash_matrix import CELLS, try_cell
from tests.harness.disk import CannotMount
from tests.harness.faults import ERRORS, HERE, POINTS, REAL, try_fault
from tests.harness.job import Job, contents

SEED = 3


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Six scenes in three shards."""
    return Job(tmp_path_factory.mktemp("crashes"))


@pytest.fixture(scope="module")
def wanted(job: Job) -> dict[str, str]:
    """What an undisturbed run leaves."""
    assert job.run(job.root / "undisturbed", *HERE).code == 0
    return contents(job.root / "undisturbed")


def test_the_matrix_has_every_point_of_every_scope() -> None:
    assert {(scope, point) for scope, point, _ in CELLS} == {
        *((stage, point) for stage in ("dense", "refine", "edit") for point in SHARD_POINTS),
        *((scope, point) for scope in ("manifest", "export") for point in FILE_POINTS),
        *(("export", point) for point in EXPORT_POINTS),
    }


@pytest.mark.slow("kill -9 at any moment loses at most the shard in flight")
@pytest.mark.parametrize("cell", CELLS, ids=[f"{scope}.{point}" for scope, point, _ in CELLS])
def test_killed_at_a_failpoint_and_resumed_equals_undisturbed(
    job: Job, wanted: dict[str, str], tmp_path: Path, cell: tuple[str, str, int]
) -> None:
    assert try_cell(job, tmp_path / "run", cell, wanted) == []


@pytest.mark.slow("kill -9 at any moment loses at most the shard in flight")
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    loop = Loop(tmp_path, SEED)
    while loop.kills < 20:
        assert loop.round(20 - loop.kills) == []
    assert len(loop.moments) > 1, "all kills fell into one part of the run"


@pytest.mark.slow("a full disk or an I/O error stops a run cleanly, and the same command finishes it")
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("point", POINTS)
def test_the_disk_fails_early_and_late(
    job: Job, wanted: dict[str, str], tmp_path: Path, point: str, error: str
) -> None:
    """`python -m tests.harness faults` runs every n."""
    assert try_fault(job, tmp_path / "early", f"{point}:3={error}", wanted) == []
    assert try_fault(job, tmp_path / "late", f"{point}:24={error}", wanted) == []


@pytest.mark.slow("a full disk or an I/O error stops a run cleanly, and the same command finishes it")
@pytest.mark.parametrize("name", REAL)
def test_a_disk_that_is_broken_for_real(job: Job, wanted: dict[str, str], tmp_path: Path, name: str) -> None:
    try:
        assert REAL[name](job, tmp_path / "disk", wanted) == []
    except CannotMount as error:
        pytest.skip(f"this machine does not let a small disk be mounted: {error}")
