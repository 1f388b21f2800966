"""The named models: they resolve without torch, and our tables agree with the libraries that own the models."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from ovseg_batch.config import load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.models import inventory, open_clip_tables, presets, zoo
from ovseg_batch.models.missing import MissingModels
from ovseg_batch.runs.needed_models import missing_models
from tests.conftest import Command

HEAVY = {"torch", "torchvision", "open_clip", "sam2", "timm", "diffusers", "transformers"}
RESOLVE = """
import sys
from ovseg_batch.models import presets, zoo
for kind in ("clip", "sam"):
    for name, preset in presets.named(kind).items():
        zoo.resolve(kind, name, None if preset.embedded else "random:0").identity()
        for file in sys.argv[1:] if not preset.embedded else ():
            if name.startswith("tipsv2") and not file.endswith(".safetensors"):
                continue  # refused
            zoo.resolve(kind, name, file).identity()
zoo.resolve_inpainting("demo").identity()
print(*sys.modules)
"""


def test_presets_resolve_without_torch(tmp_path: Path) -> None:
    """Also with local files, in both formats."""
    state = {"weight": torch.zeros(2)}
    save_file(state, tmp_path / "own.safetensors")
    torch.save(state, tmp_path / "own.pt")
    files = [str(tmp_path / "own.safetensors"), str(tmp_path / "own.pt")]
    for name in presets.CLIP:
        (tmp_path / f"{name}.tokenizer.model").write_bytes(b"of a TIPSv2")
    code = [sys.executable, "-c", RESOLVE, *files]
    own = {**os.environ, "OVSEG_CHECKPOINTS": str(tmp_path)}
    loaded = subprocess.run(code, capture_output=True, text=True, check=False, env=own)
    assert loaded.returncode == 0, loaded.stderr
    assert HEAVY & set(loaded.stdout.split()) == set()


def test_our_table_of_tags_is_open_clip_s() -> None:
    for preset in presets.CLIP.values():
        if not preset.tag:  # embedded, or a TIPSv2
            continue
        theirs = open_clip.pretrained.get_pretrained_cfg(preset.architecture, preset.tag)
        expected = open_clip_tables.Pretrained(theirs["hf_hub"].strip("/"), quick_gelu=theirs.get("quick_gelu"))
        assert open_clip_tables.pretrained(preset.architecture, preset.tag) == expected


def test_architectures_are_open_clip_s() -> None:
    assert set(open_clip_tables.architectures()) >= set(open_clip.list_models())
    for name in open_clip.list_models():
        assert open_clip_tables.architecture(name) == open_clip.get_model_config(name)
    assert open_clip_tables.architecture("../model_configs/ViT-B-16") is None


def test_every_tag_of_open_clip_is_known() -> None:
    for architecture, tag in open_clip.list_pretrained():
        theirs = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
        ours = open_clip_tables.pretrained(architecture, tag)
        assert ours is not None
        assert f"{ours.hub}/{'' if ours.files == open_clip_tables.HUB_FILES else ours.files[0]}" in (
            theirs["hf_hub"],
            f"{theirs['hf_hub']}/",
        )


@pytest.mark.parametrize("legacy", [False, True])
def test_wrong_gelu_of_a_pickled_file_is_refused(tmp_path: Path, legacy: bool) -> None:
    file = tmp_path / "own.pt"
    state = {"weight": torch.zeros(2), "input_resolution": torch.tensor(224)}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UsageError, match="QuickGELU"):
        zoo.resolve("clip", "ViT-B-16", str(file))


# ---- what is missing


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights on this machine but the embedded ones."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("OVSEG_CHECKPOINTS", raising=False)


@pytest.mark.usefixtures("empty")
def test_one_error_lists_all_models_that_are_missing(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    arguments = ("-o", tmp_path / "run", "-c", "prompted", "--labels", "sky", "--set", "edit.mode=remove")
    refused = command("run", few_scenes / "images", *arguments, "--set", "inpaint.model=flux-fill")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "ovseg-batch: 3 models are not on this machine:",
        "  openai-b16    CLIP weights, about 598.5 MB, MIT",
        "  sam2.1-large  SAM2 weights, about 898.1 MB, Apache-2.0",
        "  flux-fill     inpainting pipeline, size unknown until fetched, FLUX.1 [dev] Non-Commercial, "
        "gated: needs a token of the hub",
        "Fetch them with `ovseg-batch models fetch openai-b16 sam2.1-large flux-fill`.",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("empty")
def test_models_that_settings_need() -> None:
    def missing(*overrides: str) -> list[str]:
        config = load_config(Path("prompted"), overrides, environment={})
        return [one.name for one in missing_models(config)]

    assert missing() == ["openai-b16", "sam2.1-large"]
    assert missing("refine.method=none") == ["openai-b16"]
    assert missing("clip.model=demo", "edit.mode=remove") == ["sam2.1-large", "sd2-inpainting"]
    assert missing("clip.model=demo", "sam.weights=random:0", "edit.mode=style", "inpaint.model=acme/paint") == [
        "acme/paint"
    ]
    assert missing("clip.weights=metaclip_400m", "sam.model=demo") == ["ViT-B-16-quickgelu:metaclip_400m"]
    assert missing("clip.model=roberta-ViT-B-32", "clip.weights=random:0", "sam.model=demo") == ["roberta-ViT-B-32"]


@pytest.mark.usefixtures("empty")
def test_missing_models_can_be_sent_between_processes() -> None:
    with pytest.raises(MissingModels) as raised:
        zoo.resolve("clip", "openai-b16")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    assert "or set OVSEG_CHECKPOINTS to a folder that has ViT-B-16-openai.safetensors" in str(raised.value)


@pytest.mark.usefixtures("empty")
def test_weights_in_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sam2.1_hiera_tiny.pt").write_bytes(b"weights")
    monkeypatch.setenv("OVSEG_CHECKPOINTS", str(tmp_path))
    listed = {(one.kind, one.name): one for one in inventory.list_models()}
    tiny, large = listed["sam", "sam2.1-tiny"], listed["sam", "sam2.1-large"]
    assert (tiny.state, tiny.size, tiny.path) == ("here", 7, str(tmp_path / "sam2.1_hiera_tiny.pt"))
    assert (large.state, large.size, large.path) == ("missing", 898_083_611, "")
    assert listed["inpaint", "flux-fill"].gated


@pytest.mark.usefixtures("empty")
def test_a_pipeline_of_which_a_part_was_fetched_is_missing(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--acme--paint"
    snapshot = repository / "snapshots" / "0123"
    demo = Path(zoo.resolve_inpainting("demo").folder)
    shutil.copytree(demo, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    assert zoo.resolve_inpainting("acme/paint").folder == snapshot
    for lost in ("vae/diffusion_pytorch_model.safetensors", "unet"):
        path = snapshot / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(MissingModels, match="ovseg-batch models fetch acme/paint"):
            zoo.resolve_inpainting("acme/paint")
        shutil.rmtree(snapshot)
        shutil.copytree(demo, snapshot)


def test_the_page_about_checkpoints_names_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every preset is found under the name that the page gives."""
    page = (Path(__file__).parents[2] / "checkpoints" / "README.md").read_text()
    for line in re.findall(r"^\| (`.*`) \| (`.*`) \|$", page, re.M):
        for file in re.findall(r"`([^`]+)`", line[1]):
            (tmp_path / file).write_bytes(b"weights")
    monkeypatch.setenv("OVSEG_CHECKPOINTS", str(tmp_path))
    states = {(one.kind, one.name): one.state for one in inventory.list_models() if one.kind != "inpaint"}
    assert "missing" not in states.values()


@pytest.mark.usefixtures("empty")
def test_wrong_gelu_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(UsageError, match=r"The weights openai were trained with QuickGELU"):
        zoo.resolve("clip", "ViT-B-16", "openai")
