"""GPUs that fail: an image is charged only when it fails on its own, and a run ends only when no device is left.

The GPUs are emulated (tests/support/emulated_gpu). The fused stage computes dense and refine in one pass, so that a run
has one set of workers.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from tests.conftest import LABELS, REMOVE, Done
from tests.harness.job import with_embedded_models
from tests.support.emulation import emulated_environment, write_crops

pytestmark = pytest.mark.slow("a GPU that fails costs seconds and charges no image")

FUSED = (
    *("--set", "dense.cache=none", "--set", "background=none"),
    *("--set", "run.precision=fp32", "--set", "run.threads=1", "--device", "cuda"),
)
POISON = (250, 3, 129)  # a colour that no scene has
LATER = 40  # operations before a fault strikes

Emulated = Callable[..., Done]


@pytest.fixture(scope="module")
def emulated(cache: Path) -> Emulated:
    """Run `ovseg-batch` in a process that sees emulated GPUs; keyword arguments go into its environment."""

    def run(*arguments: object, gpus: int = 2, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "ovseg_batch", *with_embedded_models(arguments)],
            env=emulated_environment(gpus, OVSEG_CACHE=str(cache), **environment),
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def images(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The middle of four scenes."""
    return write_crops(few_scenes / "images", tmp_path_factory.mktemp("small") / "images", 4)


def job(images: Path, workdir: Path, *more: object) -> tuple[object, ...]:
    """A run of four images in two shards."""
    shards = ("--set", "manifest.shard_rows=2")
    labels = () if "--labels" in more else ("--labels", "sky, grass, tree, house")
    return "run", images, "-o", workdir, *labels, *FUSED, *shards, *more


def masks(workdir: Path) -> dict[str, list[tuple[str, str]]]:
    """Category and RLE of every mask, by image."""
    content = json.loads((workdir / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[str, list[tuple[str, str]]] = {image["file_name"]: [] for image in content["images"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for one in content["annotations"]:
        found[files[one["image_id"]]].append((names[one["category_id"]], one["segmentation"]["counts"]))
    return found


def failures(workdir: Path) -> list[tuple[str, str]]:
    with (workdir / "failures.csv").open(newline="") as file:
        return [(line["row"], line["code"]) for line in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory, emulated: Emulated) -> Path:
    """The run on one GPU without a fault."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = emulated(*job(images, workdir), gpus=1)
    assert done.returncode == 0, done.stderr
    assert sum(map(len, masks(workdir).values())) > 8
    return workdir


# Sticky errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["assert", "cublas"])
def test_a_sticky_error_ends_its_worker_and_charges_no_image(
    kind: str, images: Path, undisturbed: Path, tmp_path: Path, emulated: Emulated
) -> None:
    """cuBLAS raises a plain RuntimeError; only the synchronisation that follows shows that the GPU is lost."""
    fault = f"{kind}@refine/stage.py:_found:{LATER}!{tmp_path / 'mark'}"
    done = emulated(*job(images, tmp_path / "run"), gpus=1, EMULATED_FAULTS=fault)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").exists()
    assert "a worker on cuda:0 died in shard" in done.stderr and "the GPU failed: CUDA error" in done.stderr
    assert masks(tmp_path / "run") == masks(undisturbed)


def test_an_error_that_leaves_the_gpu_healthy_does_not_end_the_worker(
    images: Path, undisturbed: Path, tmp_path: Path, emulated: Emulated
) -> None:
    """A batch of windows fails once; its halves do not."""
    fault = f"cublas-once@dense.py:_seen:{LATER}!{tmp_path / 'mark'}"
    done = emulated(*job(images, tmp_path / "run"), gpus=1, EMULATED_FAULTS=fault)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").exists() and "died" not in done.stderr
    assert masks(tmp_path / "run") == masks(undisturbed)


def test_only_the_image_that_fails_again_on_its_own_is_charged(
    images: Path, undisturbed: Path, tmp_path: Path, emulated: Emulated
) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    names = sorted(path.name for path in folder.iterdir())
    with Image.open(folder / names[1]) as image:
        pixels = np.asarray(image).copy()
    pixels[40:80, 40:80] = POISON
    Image.fromarray(pixels).save(folder / names[1])
    fault = f"colour={'.'.join(map(str, POISON))}"
    done = emulated(*job(folder, tmp_path / "run"), gpus=1, EMULATED_FAULTS=fault)
    assert done.returncode == 3, done.stderr
    assert failures(tmp_path / "run") == [("1", "crashed")]
    found, expected = masks(tmp_path / "run"), masks(undisturbed)
    assert [name for name in names if found.get(name) != expected[name]] == [names[1]]


def test_a_gpu_that_fails_in_the_commands_own_process_is_replaced_by_a_worker(
    images: Path, undisturbed: Path, tmp_path: Path, emulated: Emulated
) -> None:
    fault = f"assert@refine/stage.py:_found:{LATER}!{tmp_path / 'mark'}"
    done = emulated(*job(images, tmp_path / "run", "--workers", "0"), gpus=1, EMULATED_FAULTS=fault)
    assert done.returncode == 0, done.stderr
    assert "a worker process takes over" in done.stderr
    assert masks(tmp_path / "run") == masks(undisturbed)


# Devices that are left out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, message",
    [
        ("unusable#1", "a worker did not start on cuda:1: the GPU failed: CUDA error"),
        (f"assert@refine/stage.py:_found:{LATER}#1", "a worker on cuda:1 died in shard"),
    ],
    ids=["at start", "later"],
)
def test_another_gpu_computes_what_one_that_fails_does_not(
    fault: str, message: str, images: Path, undisturbed: Path, tmp_path: Path, emulated: Emulated
) -> None:
    done = emulated(*job(images, tmp_path / "run", "--set", "manifest.shard_rows=1"), EMULATED_FAULTS=fault)
    assert done.returncode == 0, done.stderr
    assert message in done.stderr
    assert masks(tmp_path / "run") == masks(undisturbed)


@pytest.mark.parametrize("fault", ["unusable", "assert@refine/stage.py:_found"], ids=["at start", "later"])
def test_a_run_without_a_working_gpu_ends_with_a_sentence_and_charges_nothing(
    fault: str, images: Path, undisturbed: Path, tmp_path: Path, emulated: Emulated
) -> None:
    done = emulated(*job(images, tmp_path / "run"), gpus=1, EMULATED_FAULTS=fault)
    assert done.returncode == 1, done.stderr
    assert "cuda:0 is left out" in done.stderr
    assert "no device is left to compute on" in done.stderr and "ovseg-batch doctor" in done.stderr
    assert not list((tmp_path / "run").glob("stages/*/commits/*/*.json"))
    resumed = emulated(*job(images, tmp_path / "run"), gpus=1)
    assert resumed.returncode == 0, resumed.stderr
    assert masks(tmp_path / "run") == masks(undisturbed)


def test_models_that_a_gpu_does_not_hold_leave_it_out(images: Path, tmp_path: Path, emulated: Emulated) -> None:
    done = emulated(*job(images, tmp_path / "run"), gpus=1, EMULATED_OOM="100000@setup")
    assert done.returncode == 1, done.stderr
    assert "loading the models failed" in done.stderr and "out of memory" in done.stderr


@contextlib.contextmanager
def cluster(gpus: int, faults: str) -> Iterator[str]:
    """A node of Ray whose processes see emulated GPUs, and its address."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in emulated_environment(gpus, EMULATED_FAULTS=faults).items():
            environment.setenv(name, value)  # the actors are children of Ray's own processes
        resources = {"num_cpus": gpus, "num_gpus": gpus, "include_dashboard": False}
        started = Cluster(initialize_head=True, head_node_args=resources)
    try:
        yield started.address
    finally:
        started.shutdown()


def test_another_actor_of_ray_computes_what_one_without_a_usable_gpu_does_not(
    images: Path, undisturbed: Path, tmp_path: Path, emulated: Emulated
) -> None:
    with cluster(gpus=2, faults="unusable#1") as address:
        done = emulated(*job(images, tmp_path / "run", "--engine", "ray", "--workers", "2"), RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    assert masks(tmp_path / "run") == masks(undisturbed)


def test_ray_without_a_usable_gpu_ends_with_a_sentence(images: Path, tmp_path: Path, emulated: Emulated) -> None:
    with cluster(gpus=1, faults="unusable") as address:
        done = emulated(*job(images, tmp_path / "run", "--engine", "ray"), RAY_ADDRESS=address)
    assert done.returncode == 1, done.stderr
    assert "a GPU is left out" in done.stderr and "busy or unavailable" in done.stderr
    assert "No GPU of the cluster is usable" in done.stderr
    assert not list((tmp_path / "run").glob("stages/*/*.tmp"))


# Out of memory -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batches:
    """Something that is computed in batches.

    Attributes:
        where: the function whose results are limited.
        largest: bytes of its largest result that is allowed; a whole batch needs more, half of it does not.
        settings: of a run that computes it.
    """

    where: str
    largest: int
    settings: tuple[object, ...] = ()


PROPOSALS = [
    f"--set={setting}"
    for setting in (
        "clip.model=demo-token",
        "sam.model=demo",
        "propose.points_per_side=4",
        "propose.predicted_iou=0.3",
        "propose.stability=0.3",
    )
]
BATCHES = {
    "points": Batches("sam.py:_decode", 1_000_000),
    "windows": Batches("clip.py:patch_features", 200_000),
    "crops": Batches("clip.py:image_features", 1_000_000, ("-c", "proposals", *PROPOSALS)),
    "squares": Batches(
        "diffusion.py:paint",
        2_000_000,
        ("--labels", LABELS, *REMOVE, "--set", "inpaint.batch_size=2"),
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_out_of_memory_halves_what_is_computed_at_once(
    name: str, images: Path, tmp_path: Path, emulated: Emulated
) -> None:
    batches = BATCHES[name]
    settings = ("--workers", "0", *batches.settings)
    expected = emulated(*job(images, tmp_path / "whole", *settings), gpus=1)
    assert expected.returncode == 0 and f"{name} at once" not in expected.stderr, expected.stderr
    limit = f"{batches.largest}@{batches.where}"
    done = emulated(*job(images, tmp_path / "halves", *settings), gpus=1, EMULATED_OOM=limit)
    assert done.returncode == 0, done.stderr
    assert f"{name} at once instead of" in done.stderr
    assert masks(tmp_path / "halves") == masks(tmp_path / "whole")
    edited = [tmp_path / run / "edited" for run in ("halves", "whole")]
    assert [path.name for path in sorted(edited[0].glob("*"))] == [path.name for path in sorted(edited[1].glob("*"))]


def test_only_the_image_that_alone_does_not_fit_fails(
    images: Path, undisturbed: Path, tmp_path: Path, emulated: Emulated
) -> None:
    """The label map of the third image is four times as large as the others'."""
    folder = shutil.copytree(images, tmp_path / "images")
    names = sorted(path.name for path in folder.iterdir())
    with Image.open(folder / names[2]) as image:
        image.resize((256, 256)).save(folder / names[2])
    limit = "400000@refine/stage.py:_dense_map"
    done = emulated(*job(folder, tmp_path / "run", "--workers", "0"), gpus=1, EMULATED_OOM=limit)
    assert done.returncode == 3, done.stderr
    assert failures(tmp_path / "run") == [("2", "out_of_memory")]
    found, expected = masks(tmp_path / "run"), masks(undisturbed)
    assert [name for name in names if found.get(name) != expected[name]] == [names[2]]


# A worker without progress -------------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_killed_and_its_shard_goes_to_another(
    images: Path, undisturbed: Path, tmp_path: Path, emulated: Emulated
) -> None:
    stall = ("--set", "run.stall_minutes=0.75")
    fault = f"hang@refine/stage.py:_found:{LATER}!{tmp_path / 'mark'}"
    done = emulated(*job(images, tmp_path / "run", *stall), gpus=1, EMULATED_FAULTS=fault)
    assert done.returncode == 0, done.stderr
    assert "it finished no image for 0.75 minutes (run.stall_minutes) and was killed" in done.stderr
    assert masks(tmp_path / "run") == masks(undisturbed)


# The end of a run ----------------------------------------------------------------------------------------------------


def on_devices(log: Path) -> set[int]:
    """The processes that have used a GPU and still run."""
    pids = {int(path.name.partition("-")[0]) for path in log.glob("*-*")} if log.is_dir() else set()
    return {pid for pid in pids if _runs(pid)}


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("how", ["kill", "interrupt twice", "terminate the group"])
def test_no_process_is_left_on_a_gpu(how: str, images: Path, tmp_path: Path, cache: Path) -> None:
    """The GPU hangs, so that no worker ends by itself."""
    log = tmp_path / "log"
    environment = emulated_environment(
        2,
        OVSEG_CACHE=str(cache),
        EMULATED_LOG=str(log),
        EMULATED_FAULTS="hang@refine/stage.py:_found",
    )
    arguments = map(str, job(images, tmp_path / "run", "--workers", "2"))
    command = [sys.executable, "-m", "ovseg_batch", *with_embedded_models(arguments)]
    running = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert running.stderr is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(running.stderr or ()), daemon=True)
    reader.start()
    deadline = time.monotonic() + 300
    while len(on_devices(log)) < 2:
        assert time.monotonic() < deadline and running.poll() is None, lines
        time.sleep(0.1)
    if how == "kill":
        running.kill()
    elif how == "interrupt twice":
        running.send_signal(signal.SIGINT)
        time.sleep(1)
        running.send_signal(signal.SIGINT)
    else:
        os.killpg(running.pid, signal.SIGTERM)
        time.sleep(1)
        os.killpg(running.pid, signal.SIGTERM)
    code = running.wait(60)
    assert code == (-signal.SIGKILL if how == "kill" else 130), lines
    deadline = time.monotonic() + 30
    while on_devices(log):
        assert time.monotonic() < deadline, "a process is left on a GPU"
        time.sleep(0.1)
    reader.join(10)
    assert "Traceback" not in "".join(lines)
