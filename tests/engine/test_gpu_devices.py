"""Which GPU a worker sees, in which precision it computes, and which stages need one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ovseg_batch.config import load_config
from ovseg_batch.engine import local, ray
from ovseg_batch.engine.devices import own_device, workers_per_gpu
from ovseg_batch.engine.flight import ignore
from ovseg_batch.engine.workers import IdleWorkers
from ovseg_batch.errors import UsageError
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.runs import pipeline, planning
from ovseg_batch.runs.planning import PlannedStage
from ovseg_batch.settings import Config
from ovseg_batch.workdir.store import Workdir
from tests.support.emulation import emulated_environment, write_crops

SETTLED = """
from ovseg_batch.config import load_config
from ovseg_batch.runs.planning import settle
from ovseg_batch.models.device import prepare
import torch
prepare("cuda:0")
config = settle(load_config("demo", flags={"labels": "sky", "clip.precision": "auto"}, environment={}))
print(config.run.precision, config.clip.precision, config.sam.precision)
print(torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
"""


@pytest.mark.parametrize(
    "capabilities, precision", [("9.0", "bf16"), ("8.0,8.6", "bf16"), ("7.5", "fp16"), ("9.0,7.0", "fp16")]
)
def test_auto_is_bf16_only_where_every_gpu_has_it(capabilities: str, precision: str) -> None:
    environment = emulated_environment(2, EMULATED_CAPABILITY=capabilities)
    done = subprocess.run([sys.executable, "-c", SETTLED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chosen, tf32 = done.stdout.splitlines()
    assert chosen == f"{precision} {precision} None"
    assert tf32 == "False False", "fp32 means IEEE fp32"


@pytest.mark.parametrize(
    "device, listed, name, visible",
    [
        ("cpu", None, "cpu", None),
        ("cuda", None, "cuda:0", "0"),
        ("cuda:3", None, "cuda:0", "3"),
        ("cuda:1", "4, 6", "cuda:0", "6"),
        ("cuda:1", "GPU-ab,GPU-cd", "cuda:0", "GPU-cd"),
        ("cuda:0", "MIG-ab,MIG-cd", "cuda:0", "MIG-ab"),
        ("cuda:2", "4,6", "cuda:0", ""),
        ("cuda", "", "cuda:0", ""),
    ],
)
def test_a_worker_sees_its_own_gpu_alone(device: str, listed: str | None, name: str, visible: str | None) -> None:
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    expected = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert own_device(device, environment) == (name, expected)


QUERIES = """
import importlib, sys, traceback
import torch

def trap(owner, name):
    real = getattr(owner, name)
    def query(*arguments, **options):
        modules = [f.f_globals.get("__name__") for f, _ in traceback.walk_stack(None) if f.f_code.co_name == "<module>"]
        print(next((m for m in modules if m not in ("__main__", None)), "?"))
        return real(*arguments, **options)
    setattr(owner, name, query)

for name in ("is_available", "device_count", "_lazy_init", "get_device_properties"):
    trap(torch.cuda, name)
trap(torch._C, "_cuda_getDeviceCount")
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def modules_that_query_cuda(*imported: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", QUERIES, *imported], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "imported",
    [
        ("ovseg_batch.engine.process", "ovseg_batch.stages.registry"),
        ("ray.data", "ovseg_batch.engine.ray", "ovseg_batch.stages.registry"),
        ("ovseg_batch.cli", "ovseg_batch.runs.pipeline", "ovseg_batch.api"),
    ],
    ids=["local", "ray", "command"],
)
def test_no_module_that_is_imported_before_a_worker_exists_queries_cuda(imported: tuple[str, ...]) -> None:
    assert modules_that_query_cuda(*imported) == set()


def test_a_module_that_queries_cuda_would_be_named() -> None:
    assert modules_that_query_cuda("diffusers.utils.torch_utils") == {"diffusers.utils.torch_utils"}


COUNTED = """
from ovseg_batch.cli import main
from ovseg_batch.engine import process, workers


class Counted(process.Worker):
    def __init__(self, device):
        print("started on", device)
        super().__init__(device)


workers.Worker = Counted
main(%r)
"""


def config(**flags: object) -> Config:
    return load_config("demo", flags={"labels": "sky", **flags}, environment={})


@pytest.fixture
def cutout(few_scenes: Path, tmp_path: Path) -> list[PlannedStage]:
    """The stages of a run that cuts something out: dense, refine, edit."""
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    build_manifest([str(few_scenes / "images")], workdir.manifest, 2)
    manifest = Manifest.open(workdir.manifest)
    return planning.plan(config(**{"edit.mode": "cutout"}), workdir, manifest, workdir.manifest)


def test_on_ray_a_stage_without_a_model_reserves_no_gpu(
    cutout: list[PlannedStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[ray.Pool] = []
    monkeypatch.setattr(ray, "run_stage", lambda job, shards, pool: pools.append(pool))
    settings = config(**{"run.engine": "ray", "run.device": "cuda", "run.gpus_per_worker": {"refine": 0.5}})
    for stage in cutout:
        pipeline._commits(stage, stage.missing, settings, ignore, IdleWorkers())
    assert [(pool.device, pool.gpus) for pool in pools] == [("cuda", 1.0), ("cuda", 0.5), ("cpu", 0.0)]


def test_on_this_machine_a_stage_without_a_model_computes_on_the_cpu(
    cutout: list[PlannedStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = devices_of(cutout, monkeypatch, cores=2, memory=24 << 30)
    assert devices == [(["cuda:0", "cuda:1"], None), (["cuda:0", "cuda:1"], None), (["cpu", "cpu"], None)]


def test_workers_share_a_large_gpu_and_the_cores(cutout: list[PlannedStage], monkeypatch: pytest.MonkeyPatch) -> None:
    two_each = ["cuda:0", "cuda:1"] * 2
    cpu = (["cpu", "cpu"], None)
    assert devices_of(cutout, monkeypatch, cores=13, memory=80 << 30) == [(two_each, 3), (two_each, 3), cpu]
    assert devices_of(cutout, monkeypatch, cores=64, memory=39 << 30) == [(two_each, 16), (two_each, 16), cpu]
    three = (["cuda:0", "cuda:1", "cuda:0"], 21)
    assert devices_of(cutout[:1], monkeypatch, cores=64, memory=80 << 30, **{"run.workers": 3}) == [three]


@pytest.mark.parametrize(
    "cores, gpus, gigabytes, workers", [(2, 1, 80, 1), (24, 1, 80, 4), (192, 8, 80, 4), (64, 8, 80, 2), (24, 1, 15, 1)]
)
def test_how_many_workers_share_a_gpu(cores: int, gpus: int, gigabytes: int, workers: int) -> None:
    assert workers_per_gpu(cores, gpus, gigabytes << 30) == workers


def devices_of(
    stages: list[PlannedStage], monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, **settings: object
) -> list[tuple[list[str], int | None]]:
    """The devices and the threads of the workers of each stage, on a machine with two GPUs."""
    chosen: list[tuple[list[str], int | None]] = []
    with monkeypatch.context() as patch:
        patch.setattr(local, "run_stage", lambda job, _, devices, *__: chosen.append((devices, job.threads)))
        patch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.device_count", lambda: 2)
        patch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=memory))
        for stage in stages:
            stage = dataclasses.replace(stage, job=dataclasses.replace(stage.job, threads=None))
            pipeline._commits(stage, stage.missing, config(**{"run.device": "cuda", **settings}), ignore, IdleWorkers())
    return chosen


@pytest.mark.parametrize(
    "resources, device, precision",
    [
        ({"GPU": 2.0, "accelerator_type:H100": 1.0}, "cuda", "bf16"),
        ({"GPU": 2.0, "accelerator_type:H100": 1.0, "accelerator_type:T4": 1.0}, "cuda", "fp16"),
        ({"CPU": 8.0}, "cpu", "fp32"),
    ],
)
def test_the_gpus_of_a_cluster_decide_the_precision(
    resources: dict[str, float], device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "connect", lambda: resources)
    run = planning.settle(config(**{"run.engine": "ray"})).run
    assert (run.device, run.precision) == (device, precision)


def test_a_gpu_by_number_means_nothing_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "connect", lambda: {"GPU": 2.0})
    with pytest.raises(UsageError, match=r"With run\.engine: ray write cuda or cpu"):
        planning.settle(config(**{"run.engine": "ray", "run.device": "cuda:1"}))


@pytest.mark.slow("a GPU worker starts once for all stages of a run")
@pytest.mark.parametrize("fault", ["", "assert@refine/stage.py:_found:4"])
def test_a_gpu_worker_computes_all_stages(fault: str, few_scenes: Path, tmp_path: Path, cache: Path) -> None:
    """A worker that a fault ends in the second stage is replaced."""
    images = write_crops(few_scenes / "images", tmp_path / "images", 4)
    arguments = ["run", str(images), "-o", str(tmp_path / "run"), "-c", "demo", "--labels", "sky, grass, tree, house"]
    arguments += ["--device", "cuda", "--set", "run.precision=fp32", "--set", "run.threads=1"]
    marked = fault and f"{fault}!{tmp_path / 'mark'}"
    environment = emulated_environment(1, OVSEG_CACHE=str(cache), EMULATED_FAULTS=marked)
    done = subprocess.run(
        [sys.executable, "-c", COUNTED % arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("started on cuda:0") == (2 if fault else 1)
    assert "4 images" in done.stdout
