"""Runs on emulated GPUs give the CPU's masks: presets, edits, queries, precisions, and several workers.

Most runs share one emulated process (`serve`), since its imports take longer than a run. The CPU's runs stay in
pytest's process. In fp32 the annotations are equal bytes, because the emulation computes on the CPU: a difference
would show that the product computes something else on a GPU.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ablate import EMBEDDED
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco
from ray.cluster_utils import Cluster

from ovseg_batch.cli import main
from ovseg_batch.config import load_config, presets
from ovseg_batch.models.tipsv2_layout import is_tipsv2
from ovseg_batch.settings import SPLICED, WITH_DINO
from ovseg_batch.stages.base import methods_of
from tests.conftest import LABELS, THINGS, Command, Done
from tests.harness.job import with_embedded_models
from tests.support.emulation import ROOT, emulated_environment, write_crops
from tests.support.tiny_dino import save_tiny_dino
from tests.support.tiny_owl import save_tiny_owl
from tests.support.tiny_sam1 import save_tiny_sam1
from tests.support.tiny_sam3 import save_tiny_sam3
from tests.support.tiny_tipsv2 import save_tiny_tipsv2

pytestmark = pytest.mark.slow("GPUs, workers and Ray give the same masks as one CPU")

QUICK = ("--set", "run.threads=1", "--set", "manifest.shard_rows=1")
ALONE = ("--set", "run.workers=0")
FP32 = "--set=run.precision=fp32"
GPU = ("--device", "cuda")
CPU = ("--device", "cpu", FP32)


def serve() -> None:
    """Run the commands on stdin, one a line. Write how each ended, and its number of device operations, to stdout."""
    from emulated_cuda.log import operations

    for line in sys.stdin:
        before = operations.total()
        done = CliRunner().invoke(main, json.loads(line))
        failure = done.exception is not None and not isinstance(done.exception, SystemExit)
        problem = "".join(traceback.format_exception(done.exception)) if failure and done.exception else ""
        ended = Done(done.exit_code, done.stdout, done.stderr + problem)
        print(json.dumps([asdict(ended), operations.total() - before]), flush=True)


@pytest.fixture(scope="module")
def on_gpu(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Run `ovseg-batch` as `command` does, in a process that sees two emulated GPUs.

    A run that commits shards of a model's stage must have computed on a device.
    """
    log = tmp_path_factory.mktemp("emulated") / "log"
    code, environment = f"import {__name__}; {__name__}.serve()", emulated_environment(OVSEG_CACHE=str(cache))
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):

        def run(*arguments: object) -> Done:
            assert process.stdin is not None and process.stdout is not None
            print(json.dumps(with_embedded_models(arguments)), file=process.stdin, flush=True)
            answer = process.stdout.readline()
            assert answer, log.read_text()
            ended, operations = json.loads(answer)
            assert operations or not re.search(
                r"^(dense|propose|embed|tokens|sam3).*: 0 of", ended["stderr"], re.MULTILINE
            )
            return Done(**ended)

        yield run


@pytest.fixture(scope="module")
def images(few_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The middle of two scenes."""
    return write_crops(few_scenes / "images", tmp_path_factory.mktemp("small") / "images", 2)


@dataclass(frozen=True)
class Outputs:
    """The annotations of a run, and its edited images by name."""

    annotations: list[dict[str, Any]]
    edited: dict[str, bytes]


def outputs(workdir: Path) -> Outputs:
    edited = {path.name: path.read_bytes() for path in workdir.glob("edited/**/*") if path.is_file()}
    return Outputs(json.loads((workdir / "annotations.json").read_text())["annotations"], edited)


Both = Callable[..., tuple[Outputs, Outputs]]


@pytest.fixture(scope="module")
def both(images: Path, on_gpu: Command, command: Command, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Run the same settings on the CPU in fp32 and on a GPU.

    All runs share a workdir per device, so that stages with the same settings are computed once.
    """
    folder = tmp_path_factory.mktemp("both")

    def run(*settings: object, precision: str = "fp32") -> tuple[Outputs, Outputs]:
        found = []
        for where, name, device in ((command, "cpu", CPU), (on_gpu, "gpu", (*GPU, f"--set=run.precision={precision}"))):
            shutil.rmtree(folder / name / "edited", ignore_errors=True)
            done = where("run", images, "-o", folder / name, *ALONE, *QUICK, *device, *settings)
            assert done.returncode == 0, done.stderr
            found.append(outputs(folder / name))
        return found[0], found[1]

    return run


def agreement(one: Outputs, other: Outputs) -> float:
    """Return the mean IoU of the masks of two runs.

    Masks of the same image and label are matched greedily, best IoU first. A mask without a partner counts as 0.
    """
    total, count = 0.0, 0
    groups: dict[tuple[int, int], tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for side, run in enumerate((one, other)):
        for mask in run.annotations:
            groups[mask["image_id"], mask["category_id"]][side].append(mask["segmentation"])
    for first, second in groups.values():
        count += max(len(first), len(second))
        if first and second:
            overlap = np.asarray(coco.iou(first, second, [0] * len(second)))
            for _ in range(min(overlap.shape)):
                i, j = np.unravel_index(overlap.argmax(), overlap.shape)
                total += max(float(overlap[i, j]), 0.0)
                overlap[i], overlap[:, j] = -1, -1
    return total / count


def embedded_settings(preset: str) -> list[str]:
    """Return options that run a preset with the embedded models."""
    config = load_config(Path(preset), environment={})
    settings: dict[str, Any] = {**EMBEDDED, "clip.model": "demo", "propose.points_per_side": 4}
    if config.method == "proposals":
        settings["clip.model"] = "demo-token"
    if config.classify.tuned:
        settings["classify.tuned"] = str(ROOT / "checkpoints" / "demo" / "masq.safetensors")
    if config.edit.mode != "none":
        settings |= {"inpaint.model": "demo", "inpaint.steps": 2}
    if config.edit.drop:
        settings["edit.drop"] = THINGS
    return ["-c", preset, *(f"--set={key}={json.dumps(value)}" for key, value in settings.items())]


@pytest.mark.parametrize("preset", presets())
def test_every_preset_gives_the_cpus_masks_and_edits(preset: str, both: Both, tmp_path: Path) -> None:
    """No DINO, OWLv2, TIPSv2, SAM of the first version or SAM 3 is embedded: theirs are tiny and have random weights.

    The products of several words have other last bits than those of one.
    """
    config, tiny = load_config(Path(preset), environment={}), []
    if config.dense.attention in WITH_DINO:
        tiny.append(f"--set=dino.model=local-dir:{save_tiny_dino(tmp_path / 'dino')}")
    if config.dense.attention == SPLICED:
        tiny += [f"--set=sam.model=local-dir:{save_tiny_sam1(tmp_path)}", "--set=refine.predicted_iou=0"]
    if is_tipsv2(config.clip.model):
        tiny += [f"--set=clip.model=local-dir:{save_tiny_tipsv2(tmp_path / 'tipsv2')}", "--set=background=none"]
    if "detect" in methods_of(config):
        tiny += [f"--set=owl.model=local-dir:{save_tiny_owl(tmp_path / 'owl')}", "--set=detect.boxes=20"]
    if "sam3" in methods_of(config):
        tiny += [f"--set=sam3.model=local-dir:{save_tiny_sam3(tmp_path / 'sam3')}", "--set=sam3.words_chunk=1"]
        tiny += ["--set=sam3.threshold=0.15", "--set=sam3.nms=1", "--set=sam3.contained=1"]
    cpu, gpu = both(*embedded_settings(preset), *tiny)
    assert cpu.annotations, "a comparison without masks shows nothing"
    assert gpu == cpu


EDITS = {
    "cutout": ("--keep", THINGS),
    "fill": ("--drop", THINGS, "--set", "edit.fill.kind=blur"),
    "mask": ("--keep", THINGS),
    "crop": ("--keep", THINGS, "--set", "edit.apart=true"),
    "erase": ("--drop", THINGS),
    "remove": ("--drop", THINGS),
    "replace": ("--drop", THINGS, "--set", "edit.prompt=grass"),
    "style": ("--drop", THINGS, "--set", "edit.prompt=snow"),
}


@pytest.mark.parametrize("mode", EDITS)
def test_every_edit_gives_the_cpus_image(mode: str, both: Both) -> None:
    cpu, gpu = both("--labels", LABELS, "--edit", mode, *EDITS[mode], "--set", "inpaint.steps=2")
    assert cpu.edited
    assert gpu == cpu


#: Settings, and the least mean IoU of the masks in bf16. Measured on these two images: 0.952, 0.976, 0.971 and 0.972
#: with 6 to 10 masks each, and at least 0.9998 in fp16. Another CPU may round the sums of bf16 products otherwise.
METHODS = {
    "prompted": (["--labels", LABELS], 0.93),
    "trident": (["--labels", LABELS, "--set", "refine.method=trident"], 0.96),
    "proposals": (embedded_settings("proposals"), 0.95),
    "mask-tokens": (embedded_settings("mask-tokens"), 0.95),
}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_gives_nearly_the_cpus_masks(method: str, precision: str, both: Both) -> None:
    settings, least = METHODS[method]
    cpu, gpu = both(*settings, precision=precision)
    assert gpu != cpu, "the scores are computed in half precision"
    assert agreement(cpu, gpu) >= (least if precision == "bf16" else 0.99)


#: Largest difference of a pixel, 0 to 255. Measured: 7 in bf16 and 1 in fp16, with means of 0.07 and 0.007.
@pytest.mark.parametrize(("precision", "most"), [("bf16", 12), ("fp16", 3)])
def test_half_precision_paints_nearly_the_cpus_picture(precision: str, most: int, both: Both) -> None:
    """With the masks of fp32, so that the generator alone computes in half precision."""
    settings = ("--labels", LABELS, "--edit", "remove", *EDITS["remove"], "--set", "inpaint.steps=2")
    cpu, gpu = both(*settings, "--set", "clip.precision=fp32", "--set", "sam.precision=fp32", precision=precision)
    assert cpu.annotations == gpu.annotations and cpu.edited.keys() == gpu.edited.keys()
    differences = [pixels(gpu.edited[name]) - pixels(cpu.edited[name]) for name in cpu.edited]
    assert 0 < max(abs(difference).max() for difference in differences) <= most


def pixels(file: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image, np.int64)


def test_queries_and_banks_give_the_cpus_masks(images: Path, tmp_path: Path, on_gpu: Command, command: Command) -> None:
    """With features and embeddings kept, so that the query and the bank compute on the device what they need."""
    keep = ("--set", "dense.cache=features", "--set", "sam.cache=embeddings")
    found = []
    for run, name, device in ((command, "cpu", CPU), (on_gpu, "gpu", (*GPU, FP32))):
        first, answer, bank, with_bank = (
            tmp_path / f"{name}-{part}" for part in ("run", "answer", "bank.parquet", "with_bank")
        )
        commands = (
            ("run", images, "-o", first, "--labels", LABELS, *ALONE, *QUICK, *device, *keep),
            ("query", first, "--labels", "car; water; sky", "-o", answer),
            ("bank", "build", first, "-o", bank),
            ("bank", "use", first, "--bank", bank, "-o", with_bank, "--set", "refine.bank_weight=1"),
        )
        for arguments in commands:
            done = run(*arguments)
            assert done.returncode == 0, done.stderr
        found.append((outputs(answer), outputs(with_bank), bank.read_bytes()))
    cpu, gpu = found
    assert cpu[0].annotations and cpu[1].annotations
    assert gpu == cpu


def test_an_update_on_a_gpu_gives_the_cpus_masks(
    images: Path, tmp_path: Path, on_gpu: Command, command: Command
) -> None:
    found = []
    for run, name, device in ((command, "cpu", CPU), (on_gpu, "gpu", (*GPU, FP32))):
        folder = shutil.copytree(images, tmp_path / name / "images")
        arguments = ("run", folder, "-o", tmp_path / name / "run", "--labels", LABELS, *ALONE, *QUICK, *device)
        assert run(*arguments).returncode == 0
        changed = sorted(folder.iterdir())[0]
        with Image.open(changed) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(changed)
        done = run(*arguments, "--update")
        assert done.returncode == 0, done.stderr
        found.append(outputs(tmp_path / name / "run"))
    assert found[0].annotations and found[0] == found[1]


# ---- processes


def run_process(workdir: Path, images: Path, cache: Path, *settings: str, **environment: str) -> dict[int, set[int]]:
    """Run `ovseg-batch run` with workers of its own on two emulated GPUs.

    Returns:
        process id → physical devices that it used.
    """
    log = workdir.with_name("log")
    command = [
        sys.executable,
        "-m",
        "ovseg_batch",
        "run",
        "-c",
        "demo",
        str(images),
        "-o",
        str(workdir),
        "--labels",
        LABELS,
    ]
    command += [*QUICK, FP32, *settings]
    variables = emulated_environment(2, OVSEG_CACHE=str(cache), EMULATED_LOG=str(log), **environment)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    used: dict[int, set[int]] = defaultdict(set)
    for file in log.iterdir():
        process, dash, device = file.name.partition("-")
        if dash:
            used[int(process)].add(int(device))
    return used


@pytest.fixture(scope="module")
def on_cpu(images: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Outputs:
    workdir = tmp_path_factory.mktemp("cpu") / "run"
    done = command("run", images, "-o", workdir, "--labels", LABELS, *ALONE, *QUICK, *CPU)
    assert done.returncode == 0, done.stderr
    return outputs(workdir)


def test_three_workers_on_two_gpus_use_one_each(images: Path, tmp_path: Path, cache: Path, on_cpu: Outputs) -> None:
    three = tmp_path / "images"
    shutil.copytree(images, three)
    shutil.copy(min(images.iterdir()), three / "third.png")
    used = run_process(tmp_path / "run", three, cache, *GPU, "--workers", "3")
    assert {len(devices) for devices in used.values()} == {1}, "a process computes on one GPU"
    assert set.union(*used.values()) == {0, 1}
    first, second = masks_by_image(on_cpu)
    assert masks_by_image(outputs(tmp_path / "run")) == [first, second, first]


def masks_by_image(run: Outputs) -> list[list[Any]]:
    found = defaultdict(list)
    for mask in run.annotations:
        found[mask["image_id"]].append((mask["category_id"], mask["score"], mask["segmentation"]))
    return [found[image] for image in sorted(found)]


@pytest.mark.parametrize(
    ("settings", "environment"),
    [(("--device", "cuda:1"), {}), ((*GPU, "--workers", "0"), {"CUDA_VISIBLE_DEVICES": "GPU-1"})],
    ids=["cuda:1", "GPU-1 visible"],
)
def test_the_chosen_gpu_alone_is_used(
    settings: tuple[str, ...], environment: dict[str, str], images: Path, tmp_path: Path, cache: Path, on_cpu: Outputs
) -> None:
    used = run_process(tmp_path / "run", images, cache, *settings, **environment)
    assert set.union(*used.values()) == {1}
    assert outputs(tmp_path / "run") == on_cpu


def test_actors_of_ray_compute_on_the_gpus_that_ray_gives_them(
    images: Path, tmp_path: Path, cache: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of one node that is given two GPUs by number, since Ray detects real ones only."""
    dense = ("--set", "refine.method=none")
    done = command("run", images, "-o", tmp_path / "cpu", "--labels", LABELS, *ALONE, *QUICK, *CPU, *dense)
    assert done.returncode == 0, done.stderr
    for name, value in emulated_environment(OVSEG_CACHE=str(cache), EMULATED_LOG=str(tmp_path / "log")).items():
        monkeypatch.setenv(name, value)  # the actors are children of Ray's own processes
    resources = {"num_cpus": 2, "num_gpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    try:
        settings = ("--engine", "ray", *GPU, "--workers", "2", *dense)
        used = run_process(tmp_path / "run", images, cache, *settings, RAY_ADDRESS=cluster.address)
    finally:
        cluster.shutdown()
    assert {len(devices) for devices in used.values()} == {1} and set.union(*used.values()) == {0, 1}
    assert outputs(tmp_path / "run") == outputs(tmp_path / "cpu")
