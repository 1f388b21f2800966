"""`doctor` finds every kind of failure and exits with 1; a trial gives figures; nothing is left behind."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from breaking.disk import CannotMount, SmallDisk, small_disk
from conftest import LABELS, Command
from packaging.requirements import Requirement

from ovseg_batch.config import load_config
from ovseg_batch.doctor import disk, gpus, machine, packages, weights
from ovseg_batch.doctor.records import Check, size
from ovseg_batch.doctor.sample import spread, write_sample
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.settings import RunConfig

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "checkpoints"
#: One torch thread and little memory: the tests share the machine.
THREADS = ("--set", "run.threads=1")


def everything(root: Path) -> dict[str, bytes | None]:
    return {p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def report(command: Command, *arguments: object, code: int, **environment: str) -> tuple[dict[str, Any], Any]:
    """The checks by name and the trial of `doctor --json`."""
    done = command("doctor", "--json", *THREADS, *arguments, **environment)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is (code == 0)
    return {check["name"]: check for check in found["checks"]}, found["trial"]


def statuses(checks: dict[str, Any]) -> set[str]:
    return {name for name, check in checks.items() if check["status"] == "failed"}


def one(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 8 MB."""
    try:
        with small_disk(tmp_path / "disk", kib=8192) as small:
            yield small
    except CannotMount as error:
        pytest.skip(f"cannot mount here: {error}")


# ---- the whole command


def test_this_machine_with_the_embedded_models(tmp_path: Path, command: Command) -> None:
    done = command("doctor", "-o", tmp_path / "new" / "run", *THREADS)
    assert done.returncode == 0, done.stdout
    named = {line[8:26].strip() for line in done.stdout.splitlines() if line[:8].strip() in ("ok", "warning", "failed")}
    assert named >= {"python", "packages", "torch", "device", "cores", "memory", "workdir", "fsync", "locks"}
    assert named >= {"hard links", "clip weights", "sam weights", "settings", "space"}
    assert f"torch {torch.__version__}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("OK")
    assert list(tmp_path.iterdir()) == []


def test_a_trial_measures_every_stage_and_leaves_nothing(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    before = everything(few_scenes)
    arguments = (few_scenes / "images", "--labels", LABELS, "-o", tmp_path / "run", "--images", 3)
    checks, trial = report(command, *arguments, "--set", "edit.mode=cutout", code=0)
    assert everything(few_scenes) == before and list(tmp_path.iterdir()) == []
    assert checks["input"]["found"] == "6 images." and checks["trial"]["status"] == "ok"
    assert [stage["name"] for stage in trial["stages"]] == ["dense", "refine", "edit"]
    assert (trial["images"], trial["warm_up"], trial["listed"]) == (3, 2, 6)
    for stage in trial["stages"]:
        assert stage["milliseconds"] > 0 and stage["written"] > 0
        assert stage["memory"] > 50e6  # torch alone takes more
    milliseconds = sum(stage["milliseconds"] for stage in trial["stages"])
    assert trial["seconds"] == pytest.approx(6 / trial["images_per_second"], abs=0.1)
    if not torch.cuda.is_available():
        assert trial["device"] == "cpu"
        assert trial["images_per_second"] == pytest.approx(1000 / milliseconds, rel=1e-3)
    written = sum(stage["written"] for stage in trial["stages"])
    assert trial["written"] > written  # annotations.json comes on top
    assert trial["bytes"] == pytest.approx(6 * trial["written"], abs=6)
    assert f"the run takes about {size(trial['bytes'])}" in checks["space"]["found"]


def test_a_trial_lists_failed_images_and_does_not_touch_the_workdir(
    few_scenes: Path, finished: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(few_scenes / "images", tmp_path / "images")
    first, *_ = sorted((tmp_path / "images").iterdir())
    first.write_bytes(first.read_bytes()[:200])
    shutil.copytree(finished, tmp_path / "run")
    before = everything(tmp_path)
    done = command("doctor", tmp_path / "images", "--labels", LABELS, "-o", tmp_path / "run", "--images", 4, *THREADS)
    assert done.returncode == 0, done.stdout
    assert f"failed: {first.name}: dense: truncated: " in done.stdout
    assert "1 of 6 images failed" in done.stdout
    assert everything(tmp_path) == before
    table = [line.split() for line in done.stdout.splitlines() if line.startswith(("dense ", "refine "))]
    assert [line[0] for line in table] == ["dense", "refine"] and all(float(line[1]) > 0 for line in table)
    assert "6 images: about " in done.stdout


def test_a_folder_of_broken_images_fails_the_trial(tmp_path: Path, command: Command) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_text("no image")
    checks, trial = report(command, tmp_path / "images", "--labels", LABELS, "-o", tmp_path / "run", code=1)
    assert statuses(checks) == {"trial"} and "2 of " in checks["trial"]["found"]
    assert {failure["code"] for failure in trial["failures"]} == {"not_an_image"}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--labels", "zebra crossing"), "does not know the label 'zebra crossing'"),
        ((), "No labels."),
    ],
)
def test_a_trial_needs_labels_that_the_model_knows(
    arguments: tuple[str, ...], found: str, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    checks, trial = report(command, few_scenes / "images", *arguments, "-o", tmp_path / "run", code=1)
    assert trial is None and statuses(checks) <= {"trial", "settings"}
    assert found in (checks["settings"]["found"] + checks["trial"]["found"])


def test_an_input_that_is_not_there(tmp_path: Path, command: Command) -> None:
    checks, trial = report(command, tmp_path / "nothing", "--labels", LABELS, "-o", tmp_path / "run", code=1)
    assert statuses(checks) == {"trial"} and trial is None
    assert str(tmp_path / "nothing") in checks["trial"]["found"]


def test_a_preset_that_is_not_there(command: Command) -> None:
    done = command("doctor", "-c", "promted")
    assert done.returncode == 2 and "Did you mean 'prompted'?" in done.stderr and done.stdout == ""


def test_sigterm_during_the_trial_leaves_nothing(few_scenes: Path, tmp_path: Path) -> None:
    arguments = ["doctor", few_scenes / "images", "--labels", LABELS, "-o", tmp_path / "run", *THREADS]
    process = subprocess.Popen([sys.executable, "-m", "ovseg_batch", *map(str, arguments)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".ovseg-doctor.*.tmp/run/stages/dense-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert b"Nothing was left behind" in errors and list(tmp_path.iterdir()) == []


# ---- devices


def test_a_gpu_that_is_not_there(tmp_path: Path, command: Command) -> None:
    checks, _ = report(command, "--device", "cuda:99", "-o", tmp_path, code=1)
    assert statuses(checks) == {"device"}
    assert "cuda:99" in checks["device"]["found"] and "--device" in checks["device"]["next"]


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "mps", "", "cuda:99"])
def test_words_that_are_no_device(device: str) -> None:
    found = gpus.Gpus({"count": 0, "reason": "", "cuda": "", "hip": "", "driver_cuda": 0}, (), gpus.Driver())
    [check, *_] = gpus.check_gpus(found, RunConfig(device=device))
    assert check.status == "failed" and repr(device) in check.found and "--device" in check.next
    assert gpus.used_gpus(found, device) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu(tmp_path: Path, command: Command) -> None:
    asked, _ = report(command, "--set", "run.device=cuda", "-o", tmp_path, code=1)
    assert statuses(asked) == {"device"} and "PyTorch sees 0 GPUs" in asked["device"]["found"]
    left_open, _ = report(command, "-o", tmp_path, code=0)
    assert left_open["device"]["status"] == "warning" and "uses the CPU" in left_open["device"]["found"]


def on_emulated_gpus(workdir: Path, code: int, *arguments: str, **environment: str) -> tuple[dict[str, Any], Any]:
    """The checks by name and the trial, on the emulated GPUs that the environment describes."""
    path = str(ROOT / "tests" / "emulated_gpu")
    command = [sys.executable, "-m", "ovseg_batch", "doctor", "--json", "-o", str(workdir), *THREADS, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **environment}
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    found = json.loads(done.stdout)
    return {check["name"]: check for check in found["checks"]}, found["trial"]


def test_a_gpu_that_fails_and_one_without_bf16(tmp_path: Path) -> None:
    checks, _ = on_emulated_gpus(
        tmp_path, 0, EMULATED_GPUS="2", EMULATED_FAULTS="unusable#0", EMULATED_CAPABILITY="9.0,7.5"
    )
    assert checks["device"]["status"] == "ok" and "runs on GPU 1 in fp16" in checks["device"]["found"]
    assert checks["gpu 0"]["status"] == "warning" and "does not compute" in checks["gpu 0"]["found"]
    assert "CUDA_VISIBLE_DEVICES" in checks["gpu 0"]["next"]
    assert checks["gpu 1"]["status"] == "warning" and "no bf16 in hardware" in checks["gpu 1"]["found"]
    assert "compute capability 7.5" in checks["gpu 1"]["found"] and "fp16" in checks["gpu 1"]["next"]


def test_no_gpu_that_computes(tmp_path: Path) -> None:
    checks, _ = on_emulated_gpus(tmp_path, 1, EMULATED_GPUS="1", EMULATED_FAULTS="unusable")
    assert statuses(checks) == {"device", "gpu 0"} and "no GPU that it may use" in checks["device"]["found"]


def test_a_trial_on_a_gpu(few_scenes: Path, tmp_path: Path) -> None:
    """It runs on the GPU that the settings name, and measures its memory."""
    arguments = (str(few_scenes / "images"), "--labels", LABELS, "--images", "1", "--set", "refine.max_points=2")
    _, trial = on_emulated_gpus(tmp_path, 0, *arguments, "--device", "cuda:1", EMULATED_GPUS="2")
    assert trial["device"] == "cuda:1" and trial["workers"] == "1 worker on 1 GPU"
    assert all(stage["gpu_memory"] > 1e6 for stage in trial["stages"])
    assert list(tmp_path.iterdir()) == []


# ---- weights


def test_missing_weights(hub: Path, tmp_path: Path, command: Command) -> None:
    checks, _ = report(command, "-c", "prompted", "-o", tmp_path, code=1, OVSEG_CHECKPOINTS=str(hub))
    assert statuses(checks) == {"clip weights", "sam weights"} and "settings" not in checks
    assert checks["clip weights"]["next"] == "Run `ovseg-batch models fetch openai-b16`."
    assert checks["sam weights"]["next"] == "Run `ovseg-batch models fetch sam2.1-large`."


def test_a_flipped_byte_in_the_embedded_models(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(CHECKPOINTS / "demo", tmp_path / "own" / "demo")
    file = tmp_path / "own" / "demo" / "sam2.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    arguments = (few_scenes / "images", "--labels", LABELS, "-o", tmp_path / "run")
    checks, trial = report(command, *arguments, code=1, OVSEG_CHECKPOINTS=str(tmp_path / "own"))
    assert statuses(checks) == {"sam weights", "trial"} and trial is None
    assert "wrong hash" in checks["sam weights"]["found"] and str(file) in checks["sam weights"]["found"]
    assert "sam weights" in checks["trial"]["found"]
    assert checks["clip weights"]["status"] == "ok" and "hash as published" in checks["clip weights"]["found"]


def test_every_embedded_file_has_its_hash() -> None:
    listed = weights.read_sums(CHECKPOINTS / "demo" / weights.SUMS)
    files = [
        p for p in (CHECKPOINTS / "demo").rglob("*") if p.is_file() and p.suffix != ".md" and p.name != weights.SUMS
    ]
    assert listed == {p.relative_to(CHECKPOINTS / "demo").as_posix(): weights.file_digest(p) for p in files}


def test_files_of_the_hubs_cache_are_compared_with_the_names_of_their_blobs(hub: Path, tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(4)}}, tmp_path / "saved.pt")
    digest = hashlib.sha256((tmp_path / "saved.pt").read_bytes()).hexdigest()
    repository = hub / "models--facebook--sam2.1-hiera-tiny"
    for folder in ("blobs", "refs", "snapshots/0123"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    blob = (tmp_path / "saved.pt").rename(repository / "blobs" / digest)
    (repository / "snapshots" / "0123" / "sam2.1_hiera_tiny.pt").symlink_to(f"../../blobs/{digest}")
    config = load_config(overrides=["sam.model=sam2.1-tiny"], environment={})
    good = one(weights.check_weights(config), "sam weights")
    assert good.status == "ok" and "hash as published" in good.found
    blob.write_bytes(blob.read_bytes() + b"\0")
    bad = one(weights.check_weights(config), "sam weights")
    assert bad.status == "failed" and "wrong hash" in bad.found and digest[:16] in bad.found
    assert bad.next == "Delete the file, then run `ovseg-batch models fetch sam2.1-tiny`."


def test_small_files_of_the_hub_have_gits_hash(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}\n")
    git = hashlib.sha1(b"blob 3\0{}\n").hexdigest()
    (tmp_path / "config.json").rename(tmp_path / git)
    (tmp_path / "config.json").symlink_to(tmp_path / git)
    assert weights.published_hash(tmp_path / "config.json") == (git, "the hub")
    assert weights.file_digest(tmp_path / "config.json", "sha1") == git


@pytest.mark.parametrize("name", ["garbage.safetensors", "garbage.pt"])
@pytest.mark.parametrize("key", ["clip", "sam"])
def test_weights_that_are_garbage(key: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x93garbage" * 100)
    model = "clip.model=ViT-B-16" if key == "clip" else "sam.model=sam2.1-tiny"
    config = load_config(overrides=[model, f"{key}.weights={tmp_path / name}"], environment={})
    check = one(weights.check_weights(config), f"{key} weights")
    assert check.status == "failed" and name in check.found + check.next and check.next


def test_weights_without_a_published_hash_are_reported_with_theirs(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(4)}, tmp_path / "own.pt")
    config = load_config(overrides=["sam.model=sam2.1-tiny", f"sam.weights={tmp_path / 'own.pt'}"], environment={})
    check = one(weights.check_weights(config), "sam weights")
    assert check.status == "ok" and "no published hash to compare with" in check.found
    assert weights.file_digest(tmp_path / "own.pt") in check.found


def test_originals_of_openai_are_compared_with_their_url(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-16.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(file))
    url = open_clip.pretrained.get_pretrained_cfg("ViT-B-16", "openai")["url"]
    assert weights.published_hash(file) == (weights.hash_in_url(url), url)
    config = load_config(overrides=["clip.model=ViT-B-16-quickgelu", f"clip.weights={file}"], environment={})
    assert "wrong hash" in one(weights.check_weights(config), "clip weights").found
    torch.save({"weight": torch.zeros(4)}, file)  # tensors that a person took out of the archive
    assert weights.published_hash(file) == ("", "")


def test_the_hash_in_a_url() -> None:
    digest = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    assert weights.hash_in_url(f"https://example.org/models/{digest}/ViT-B-16.pt") == digest
    assert weights.hash_in_url("https://example.org/rn50-quickgelu-yfcc15m-455df137.pt") == "455df137"
    assert weights.hash_in_url("https://example.org/b32_400m.pt") == ""


def test_which_models_a_configuration_needs(tmp_path: Path) -> None:
    def names(*overrides: str) -> list[str]:
        config = load_config(overrides=overrides, environment={})
        return [check.name for check in weights.check_weights(config) if check.status == "ok"]

    assert names("refine.method=none") == ["clip weights"]
    assert names("edit.mode=remove") == ["clip weights", "sam weights", "inpaint weights"]
    tuned = ("method=proposals", "clip.model=demo-token", "classify.scorer=mask-tokens")
    file = CHECKPOINTS / "demo" / "masq.safetensors"
    assert names(*tuned, f"classify.tuned={file}") == ["clip weights", "sam weights", "classify.tuned weights"]


def test_an_inpainting_pipeline_that_lost_a_file(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "demo" / "inpaint", tmp_path / "pipeline")
    file = tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    file.symlink_to(tmp_path / "gone")
    config = load_config(overrides=["edit.mode=remove", f"inpaint.model={tmp_path / 'pipeline'}"], environment={})
    check = one(weights.check_weights(config), "inpaint weights")
    assert check.status == "failed" and str(file) in check.found


# ---- the workdir's file system


def test_a_small_disk_then_a_full_one(mounted: SmallDisk, tmp_path: Path, command: Command) -> None:
    checks, _ = report(command, "-o", mounted.path / "run", code=1)
    assert statuses(checks) == {"space"} and "MB free" in checks["space"]["found"]
    assert checks["workdir"]["status"] == "ok" and "tmpfs" in checks["workdir"]["found"]
    with pytest.raises(OSError, match="No space"), (mounted.path / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    full = disk.check_disk(mounted.path)
    assert [check.status for check in full] == ["failed"] and os.strerror(errno.ENOSPC) in full[0].found
    assert disk.check_space(mounted.path, None).status == "failed"
    assert [path.name for path in mounted.path.iterdir()] == ["ballast"]


def test_a_read_only_disk(mounted: SmallDisk) -> None:
    mounted.turn_read_only()
    [check] = disk.check_disk(mounted.path / "run")
    assert check.status == "failed" and os.strerror(errno.EROFS) in check.found and "-o" in check.next


def test_a_workdir_below_a_file(tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("mine")
    checks, _ = report(command, "-o", tmp_path / "file" / "run", code=1)
    assert statuses(checks) == {"workdir"} and str(tmp_path / "file") in checks["workdir"]["found"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_nobody_can_write() -> None:
    [check] = disk.check_disk(Path("/proc/run"))
    assert check.status == "failed" and "/proc cannot be written" in check.found


def test_more_than_the_disk_holds(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check = disk.check_space(tmp_path, free * 2)
    assert check.status == "failed" and "dense.cache" in check.next


def test_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with disk.scratch_folder(tmp_path) as mine:
        dead = tmp_path / mine.name.replace(f"@{os.getpid()}.", f"@{ended.pid}.")
        dead.mkdir()
        (dead / "file").write_text("left over")
        with disk.scratch_folder(tmp_path):
            assert mine.is_dir() and not dead.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links(tmp_path: Path) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    (tmp_path / "block").write_text("")
    assert disk._check_links(tmp_path).status == "ok"
    (tmp_path / "linked").unlink()
    check = disk._check_links(tmp_path, refused)
    assert check.status == "warning" and "copies" in check.next


# ---- cores, memory, packages


def test_limits_of_control_groups(tmp_path: Path) -> None:
    """Version 2: the tightest of the group and those above it. Version 1: its own folders and names."""
    files = {
        "job/cpu.max": "max 100000\n",
        "job/memory.max": "max\n",
        "cpu.max": "150000 100000\n",
        "memory.max": "4000000000\n",
        "memory.current": "1500000000\n",
        "memory.stat": "anon 1\ninactive_file 500000000\n",
        "cpu/old/cpu.cfs_quota_us": "400000\n",
        "cpu/old/cpu.cfs_period_us": "100000\n",
        "memory/old/memory.limit_in_bytes": "9223372036854771712\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "v2").write_text("0::/job\n")
    assert machine.control_group(tmp_path / "v2", tmp_path) == machine.Limits(1.5, 4_000_000_000, 1_000_000_000)
    for name in ("cpu.max", "memory.max"):
        (tmp_path / name).unlink()
    (tmp_path / "v1").write_text("3:cpu:/old\n2:memory:/old\n")
    assert machine.control_group(tmp_path / "v1", tmp_path) == machine.Limits(4.0, None, 0)
    assert machine.control_group(tmp_path / "none", tmp_path) == machine.Limits()


def test_a_control_group_with_less_than_the_threads_take() -> None:
    limits = machine.Limits(cores=1.0, memory=1_000_000_000, used=100_000_000)
    [check] = machine.check_cores(RunConfig(threads=4), limits, 1, on_cpu=True)
    assert check.status == "warning" and "--set run.threads=1" in check.next
    [fitting] = machine.check_cores(RunConfig(threads=1), limits, 1, on_cpu=True)
    assert fitting.status == "ok"
    [two_workers] = machine.check_cores(RunConfig(threads=1), limits, 2, on_cpu=True)
    assert two_workers.status == "warning"
    memory = machine.check_memory(limits)
    assert memory.status == "warning" and "of 1.0 GB (limit of the control group)" in memory.found


def test_packages_that_are_missing_or_too_old() -> None:
    wanted = ["numpy>=2.0", "pillow>=999", "ovseg-no-such-package>=1.0"]
    checks = packages.check_requirements([Requirement(text) for text in wanted])
    assert [(check.name, check.status) for check in checks] == [
        ("package pillow", "failed"),
        ("package ovseg-no-such-package", "failed"),
    ]
    assert "does not satisfy >=999" in checks[0].found and checks[0].next == "Run `pip install 'pillow>=999'`."
    assert "is not installed" in checks[1].found
    assert packages.check_python(">=99").status == "failed"


def test_an_old_package_cuts_the_report_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    (tmp_path / "diffusers-0.1.dist-info").mkdir()
    (tmp_path / "diffusers-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: diffusers\nVersion: 0.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    checks, _ = report(command, code=1)
    assert statuses(checks) == {"package diffusers"} and "device" not in checks
    assert checks["package diffusers"]["next"].startswith("Run `pip install 'diffusers>=")


def test_a_package_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ovseg_broken.py").write_text("raise OSError('libGL.so.1: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    [check] = packages.check_imports(["numpy", "ovseg_broken"])
    assert check.status == "failed" and "libGL.so.1" in check.found


# ---- the sample


def test_a_sample_is_spread_over_the_list(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for k in range(100):
        (images / f"{k:03}.png").write_bytes(b"x")
    build_manifest([str(images)], tmp_path / "all.parquet", 7)
    sample = write_sample(tmp_path / "all.parquet", tmp_path / "few.parquet", 8)
    few = Manifest.open(tmp_path / "few.parquet")
    assert (sample.warm_up, sample.timed, sample.listed, few.shards, few.rows) == (2, 8, 100, 2, 10)
    timed = [int(Path(row.path).stem) for row in few.read_shard(1)]
    assert timed[0] == 0 and timed[-1] == 99 and timed == sorted(set(timed))
    assert max(b - a for a, b in itertools.pairwise(timed)) <= 25
    assert {row.path for row in few.read_shard(0)}.isdisjoint(row.path for row in few.read_shard(1))


def test_a_list_of_one_image_is_warmed_up_with_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "only.png").write_bytes(b"x")
    build_manifest([str(tmp_path / "images")], tmp_path / "all.parquet", 256)
    sample = write_sample(tmp_path / "all.parquet", tmp_path / "few.parquet", 8)
    assert (sample.warm_up, sample.timed, sample.listed) == (1, 1, 1)
    few = Manifest.open(tmp_path / "few.parquet")
    assert [row.key for shard in (0, 1) for row in few.read_shard(shard)] == ["warm-up/only.png", "only.png"]


def test_spread() -> None:
    assert spread(3, 8) == [0, 1, 2] and spread(10, 1) == [0] and spread(11, 3) == [0, 5, 10]
    assert len(set(spread(1000, 10))) == 10
