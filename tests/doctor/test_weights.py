"""`doctor` finds weights that are missing, damaged, or not those that were published."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch

from ovseg_batch.config import load_config
from ovseg_batch.doctor import weights
from ovseg_batch.io.hashing import file_digest
from tests.conftest import LABELS, Command
from tests.support.diagnosis import CHECKPOINTS, failures, one, report


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def test_missing_weights(hub: Path, tmp_path: Path, command: Command) -> None:
    checks, _ = report(command, "-c", "prompted", "-o", tmp_path, code=1, OVSEG_CHECKPOINTS=str(hub))
    assert failures(checks) == {"clip weights", "sam weights"} and "settings" not in checks
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
    assert failures(checks) == {"sam weights", "trial"} and trial is None
    assert "wrong hash" in checks["sam weights"]["found"] and str(file) in checks["sam weights"]["found"]
    assert "sam weights" in checks["trial"]["found"]
    assert checks["clip weights"]["status"] == "ok" and "hash as published" in checks["clip weights"]["found"]


def test_every_embedded_file_has_its_hash() -> None:
    listed = weights.read_sums(CHECKPOINTS / "demo" / weights.SUMS)
    files = [
        p for p in (CHECKPOINTS / "demo").rglob("*") if p.is_file() and p.suffix != ".md" and p.name != weights.SUMS
    ]
    assert listed == {p.relative_to(CHECKPOINTS / "demo").as_posix(): file_digest(p) for p in files}


def test_files_of_the_hubs_cache_are_compared_with_the_names_of_their_blobs(hub: Path, tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(4)}}, tmp_path / "saved.pt")
    digest = hashlib.sha256((tmp_path / "saved.pt").read_bytes()).hexdigest()
    repository = hub / "models--facebook--sam2.1-hiera-tiny"
    for folder in ("blobs", "refs", "snapshots/0123"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    blob = (tmp_path / "saved.pt").rename(repository / "blobs" / digest)
    (repository / "snapshots" / "0123" / "sam2.1_hiera_tiny.pt").symlink_to(f"../../blobs/{digest}")
    config = load_config("demo", overrides=["sam.model=sam2.1-tiny"], environment={})
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
    assert file_digest(tmp_path / "config.json", "sha1") == git


@pytest.mark.parametrize("name", ["garbage.safetensors", "garbage.pt"])
@pytest.mark.parametrize("key", ["clip", "sam"])
def test_weights_that_are_garbage(key: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x93garbage" * 100)
    model = "clip.model=ViT-B-16" if key == "clip" else "sam.model=sam2.1-tiny"
    config = load_config("demo", overrides=[model, f"{key}.weights={tmp_path / name}"], environment={})
    check = one(weights.check_weights(config), f"{key} weights")
    assert check.status == "failed" and name in check.found + check.next and check.next


def test_weights_without_a_published_hash_are_reported_with_theirs(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(4)}, tmp_path / "own.pt")
    config = load_config(
        "demo", overrides=["sam.model=sam2.1-tiny", f"sam.weights={tmp_path / 'own.pt'}"], environment={}
    )
    check = one(weights.check_weights(config), "sam weights")
    assert check.status == "ok" and "there is no published hash" in check.found
    assert file_digest(tmp_path / "own.pt") in check.found


def test_originals_of_openai_are_compared_with_their_url(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-16.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(file))
    url = open_clip.pretrained.get_pretrained_cfg("ViT-B-16", "openai")["url"]
    assert weights.published_hash(file) == (weights.hash_in_url(url), url)
    config = load_config("demo", overrides=["clip.model=ViT-B-16-quickgelu", f"clip.weights={file}"], environment={})
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
        config = load_config("demo", overrides=overrides, environment={})
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
    config = load_config(
        "demo", overrides=["edit.mode=remove", f"inpaint.model={tmp_path / 'pipeline'}"], environment={}
    )
    check = one(weights.check_weights(config), "inpaint weights")
    assert check.status == "failed" and str(file) in check.found
