"""kill -9 at every failpoint of every scope, and at random moments; writes that fail, and disks that are full."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from ovseg_batch.failpoints import EXPORT_POINTS, FILE_POINTS, SHARD_POINTS
from tests.harness.configurations import options, save_models
from tests.harness.crash import Loop
from tests.harness.crash_matrix import FIRST, MATRIX, Cell, sample, try_cell
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
    assert {(scope, point) for scope, point, _ in MATRIX[FIRST]} == {
        *((stage, point) for stage in ("dense", "refine", "edit") for point in SHARD_POINTS),
        *((scope, point) for scope in ("manifest", "export") for point in FILE_POINTS),
        *(("export", point) for point in EXPORT_POINTS),
    }


@pytest.mark.slow("kill -9 at any moment loses at most the shard in flight")
@pytest.mark.parametrize("cell", MATRIX[FIRST], ids=[f"{scope}.{point}" for scope, point, _ in MATRIX[FIRST]])
def test_killed_at_a_failpoint_and_resumed_equals_undisturbed(
    job: Job, wanted: dict[str, str], tmp_path: Path, cell: Cell
) -> None:
    assert try_cell(job, tmp_path / "run", cell, wanted) == []


def test_the_matrix_has_every_stage_of_every_method() -> None:
    stages = {name: {scope for scope, _, _ in cells} for name, cells in MATRIX.items()}
    assert stages["hybrid"] == {"tokens", "sam3", "settle", "dense", "refine", "merge", "edit"}
    assert stages["proposals"] == {"propose", "embed", "classify", "edit"}
    assert stages["detect"] == {"detect", "classify", "edit"}
    sampled = {scope for _, (scope, _, _) in sample()} | {scope for scope, _, _ in MATRIX[FIRST]}
    assert set().union(*stages.values()) <= sampled


@pytest.fixture(scope="module")
def undisturbed(job: Job) -> Callable[[str], dict[str, str]]:
    """Return what an undisturbed run of a configuration leaves."""
    save_models(job.root / "models")

    @functools.cache
    def finished(name: str) -> dict[str, str]:
        ended = job.run(job.root / name, *HERE, *options(name, job.root / "models"))
        assert ended.code == 0, ended
        return contents(job.root / name)

    return finished


@pytest.mark.slow("kill -9 at any moment loses at most the shard in flight, with every method")
@pytest.mark.parametrize(("name", "cell"), sample(), ids=[f"{name}-{cell[0]}.{cell[1]}" for name, cell in sample()])
def test_each_stage_of_each_method_is_killed_and_resumed(
    job: Job, undisturbed: Callable[[str], dict[str, str]], tmp_path: Path, name: str, cell: Cell
) -> None:
    """`python -m tests.harness crash-matrix` tries every point."""
    assert try_cell(job, tmp_path / "run", cell, undisturbed(name), options(name, job.root / "models")) == []


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
