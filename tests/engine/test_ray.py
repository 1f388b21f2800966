"""A real Ray on this machine: one node, and two nodes with one killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.conftest import Command, data_files, run_arguments
from tests.harness.job import Running

pytestmark = pytest.mark.slow("Ray gives the same bytes as one worker, also when a node is killed")

RAY = ("--engine", "ray", "--set", "manifest.shard_rows=1")


@pytest.fixture(scope="module")
def undisturbed(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Running]) -> Path:
    """The six scenes in six shards, done by one local worker."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = start(*run_arguments(few_scenes / "images", workdir, "--set", "manifest.shard_rows=1")).wait()
    assert ended.code == 0, ended.stderr
    return workdir


def results(workdir: Path) -> dict[str, str]:
    """All but the settings, which name the engine."""
    return {name: digest for name, digest in data_files(workdir).items() if name != "config.yaml"}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and a second node, one CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()
    if ray.is_initialized():
        ray.shutdown()


def test_two_nodes_of_which_one_is_killed_give_the_same_bytes(
    undisturbed: Path, few_scenes: Path, tmp_path: Path, start: Callable[..., Running], cluster: Cluster
) -> None:
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    workdir = tmp_path / "run"
    running = start(*run_arguments(few_scenes / "images", workdir, *RAY), RAY_ADDRESS=cluster.address)
    deadline = time.monotonic() + 300
    while len(list(workdir.glob("stages/dense-*/commits/*/*.json"))) < 2:
        assert time.monotonic() < deadline and running.process.is_alive(), running.log.read_text()
        time.sleep(0.02)
    cluster.remove_node(second, allow_graceful=False)
    ended = running.wait()
    assert ended.code == 0, ended.stderr
    assert results(workdir) == results(undisturbed)


def test_an_image_that_kills_costs_one_row_on_ray_too(
    few_scenes: Path, tmp_path: Path, start: Callable[..., Running]
) -> None:
    workdir = tmp_path / "run"
    traps = "decode-3=abort"
    ended = start(*run_arguments(few_scenes / "images", workdir, *RAY), OVSEG_FAILPOINTS=traps).wait()
    assert ended.code == 3, ended.stderr
    assert ",dense,crashed," in (workdir / "failures.csv").read_text()


def test_an_interrupt_lets_every_actor_finish_its_shard(
    undisturbed: Path, few_scenes: Path, tmp_path: Path, start: Callable[..., Running], command: Command
) -> None:
    workdir = tmp_path / "run"
    arguments = run_arguments(few_scenes / "images", workdir, *RAY, "--workers", "1")
    running = start(*arguments, OVSEG_FAILPOINTS="dense.data+=delay")
    deadline = time.monotonic() + 300
    while not list(workdir.glob("stages/dense-*/commits/*/*.json")):
        assert time.monotonic() < deadline and running.process.is_alive(), running.log.read_text()
        time.sleep(0.02)
    os.kill(running.process.pid or 0, signal.SIGINT)
    ended = running.wait()
    assert ended.code == 130, ended.stderr
    assert "Stopping after the shards in flight; press Ctrl-C again to stop at once." in ended.stderr
    done = len(list(workdir.glob("stages/dense-*/commits/*/*.json")))
    assert 1 <= done < 6 and not list(workdir.glob("stages/*/.stop-*")) and not list(workdir.rglob("*.tmp"))
    assert command(*run_arguments(few_scenes / "images", workdir, "--set", "manifest.shard_rows=1")).returncode == 0
    assert results(workdir) == results(undisturbed)


def test_an_error_on_a_node_is_told_as_it_is(few_scenes: Path, tmp_path: Path, start: Callable[..., Running]) -> None:
    traps = "dense.write=ENOSPC"
    arguments = run_arguments(few_scenes / "images", tmp_path / "run", *RAY)
    ended = start(*arguments, OVSEG_FAILPOINTS=traps).wait()
    assert ended.code == 1
    assert "No space left on device" in ended.stderr and "Run the same command again" in ended.stderr


def test_a_cluster_that_is_not_there(few_scenes: Path, tmp_path: Path, start: Callable[..., Running]) -> None:
    arguments = run_arguments(few_scenes / "images", tmp_path / "run", *RAY)
    ended = start(*arguments, RAY_ADDRESS="127.0.0.1:1").wait()
    assert ended.code == 2
    assert "Cannot reach the Ray cluster" in ended.stderr
