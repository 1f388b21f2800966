"""Published weights: they load and run, and files that would compute other results are refused."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import skimage
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.models import zoo
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.sam import Sam, build
from ovseg_batch.models.weights import read_state_dict
from tests.conftest import Command

CPU = torch.device("cpu")


# ---- full size, upstream formats, random weights


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as OpenAI and Meta lay them out."""

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16-quickgelu").half()
    state = {k: v.contiguous() for k, v in clip.state_dict().items()}
    extra = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    openai = {**state, **{k: torch.tensor(v) for k, v in extra.items()}}
    torch.save(openai, folder / "vit-b-16.pt")
    save_file(openai, folder / "vit-b-16.safetensors")
    for letter in ("t", "l"):
        model = build(f"configs/sam2.1/sam2.1_hiera_{letter}.yaml")
        torch.save({"model": model.state_dict()}, folder / f"sam2.1_{letter}.pt")
    return folder


@pytest.mark.parametrize("file", ["vit-b-16.pt", "vit-b-16.safetensors"])
def test_openai_layout_passes_models_check(upstream: Path, command: Command, file: str) -> None:
    done = command("models", "check", "--clip", "ViT-B-16-quickgelu", "--clip-weights", upstream / file)
    assert done.returncode == 0, done.stderr
    assert "QuickGELU" in done.stdout and "149,620,737" in done.stdout and "14 × 14" in done.stdout


def test_openai_layout_gives_open_clips_own_numbers(upstream: Path) -> None:
    spec = zoo.resolve("clip", "ViT-B-16-quickgelu", str(upstream / "vit-b-16.pt"))
    clip = DenseClip.load(spec, CPU, "fp32")
    state = torch.load(upstream / "vit-b-16.pt", weights_only=True)
    theirs = open_clip.model.build_model_from_openai_state_dict(dict(state), cast_dtype=torch.float32).float().eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    [tokens] = clip.tokens(images, VARIANTS["vanilla"])
    with torch.inference_mode():
        assert torch.allclose(tokens[:, 0], theirs.encode_image(images), atol=1e-4)
    prompts = ["a photo of a cat."]
    own = F.normalize(theirs.encode_text(open_clip.get_tokenizer("ViT-B-16")(prompts)), dim=-1)
    assert torch.allclose(clip.encode_text(prompts), own, atol=1e-5)


@pytest.mark.slow("weight files of the published size load and run")
@pytest.mark.parametrize("letter", ["t", "l"])
def test_metas_layout_passes_models_check(upstream: Path, command: Command, letter: str) -> None:
    config = f"configs/sam2.1/sam2.1_hiera_{letter}.yaml"
    done = command("models", "check", "--sam", config, "--sam-weights", upstream / f"sam2.1_{letter}.pt")
    assert done.returncode == 0, done.stderr
    assert "3 of 256 × 256 a point" in done.stdout


PHOTOGRAPHS = {
    "astronaut.png": (512, 512),
    "chelsea.png": (451, 300),
    "coffee.png": (600, 400),
    "rocket.jpg": (640, 427),
}


@pytest.mark.slow("weight files of the published size load and run")
@pytest.mark.parametrize("letter", ["t", "l"])
def test_full_size_models_run_on_photographs(upstream: Path, tmp_path: Path, command: Command, letter: str) -> None:
    """Random weights mean nothing; what is shown is that real files, sizes and photographs go through."""
    (tmp_path / "photos").mkdir()
    for name in PHOTOGRAPHS:
        shutil.copy(Path(skimage.__file__).parent / "data" / name, tmp_path / "photos")
    settings = {
        "clip.model": "ViT-B-16-quickgelu",
        "clip.weights": upstream / "vit-b-16.safetensors",
        "sam.model": f"configs/sam2.1/sam2.1_hiera_{letter}.yaml",
        "sam.weights": upstream / f"sam2.1_{letter}.pt",
        "dense.templates": "simple4",
        "background": "none",  # random weights find one word everywhere, and it competes
        "refine.vote": 0,
        "refine.max_points": 4,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = command("run", tmp_path / "photos", "-o", tmp_path / "run", "--labels", "person, cat, cup", *overrides)
    assert done.returncode == 0, done.stderr
    coco = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert {i["file_name"]: (i["width"], i["height"]) for i in coco["images"]} == PHOTOGRAPHS
    assert coco["annotations"]


# ---- what is refused


def test_wrong_gelu_is_refused(upstream: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"QuickGELU.*Set clip.model: ViT-B-16-quickgelu"):
        zoo.resolve("clip", "ViT-B-16", str(upstream / "vit-b-16.pt"))
    (tmp_path / "my-openai-b16.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="QuickGELU"):
        zoo.resolve("clip", "ViT-B-16", str(tmp_path / "my-openai-b16.safetensors"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"trained with GELU.*Set clip.model: ViT-B-16\."):
        zoo.resolve("clip", "ViT-B-16-quickgelu", str(tmp_path / "weights.safetensors"))


def test_pickled_objects_and_torchscript_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("code ran",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"x": Evil()}, tmp_path / "evil2.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    for name in ("evil.pt", "evil2.pt", "script.pt"):
        with pytest.raises(OvsegError, match=name):
            read_state_dict(str(tmp_path / name))
    with pytest.raises(OvsegError, match="TorchScript archive, which can run code"):
        read_state_dict(str(tmp_path / "script.pt"))


def test_weights_of_another_architecture(upstream: Path) -> None:
    with pytest.raises(OvsegError, match="do not fit the architecture ViT-B-32-quickgelu"):
        DenseClip.load(zoo.resolve("clip", "ViT-B-32-quickgelu", str(upstream / "vit-b-16.pt")), CPU, "fp32")
    with pytest.raises(OvsegError, match="do not fit the SAM2 config"):
        Sam.load(zoo.resolve("sam", "sam2.1-tiny", str(upstream / "sam2.1_l.pt")), CPU, "fp32")


@pytest.mark.parametrize("handlers", [[], [logging.NullHandler()]])
def test_open_clip_s_message_of_random_weights_is_dropped(
    upstream: Path, handlers: list[logging.Handler], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are loaded after it. The root logger of a program keeps its handlers and filters."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(handlers))
    DenseClip.load(zoo.resolve("clip", "ViT-B-16-quickgelu", str(upstream / "vit-b-16.safetensors")), CPU, "fp32")
    assert root.handlers == handlers and not root.filters and capsys.readouterr().err == ""
    logging.getLogger("open_clip").warning("another message")
    assert ("another message" in capsys.readouterr().err) == (not handlers)


def test_image_tower_that_is_no_vit() -> None:
    with pytest.raises(UsageError, match="image tower is a ResNet"):
        DenseClip.load(zoo.resolve("clip", "RN50", "random:0"), CPU, "fp32")


def test_files_of_old_versions_of_pytorch_load_and_other_pickles_are_refused(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(str(tmp_path / "old.pt"))["a"], tensors["a"])
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": np.arange(3)}))
    with pytest.raises(OvsegError, match="pickled objects"):
        read_state_dict(str(tmp_path / "plain.pt"))


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt", "empty.safetensors", "empty.pt", "page.pt"])
def test_a_damaged_download_is_named_in_one_sentence(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    tensors = {"a": torch.arange(3000.0)}
    (save_file if name.endswith("s") else torch.save)(tensors, file)
    content = {"cut": file.read_bytes()[:5000], "empty": b"", "page": b"<!DOCTYPE html><html>"}[file.stem]
    file.write_bytes(content)
    with pytest.raises(OvsegError, match=r"cannot be read as weights: .* fetch it again") as raised:
        read_state_dict(str(file))
    assert "\n" not in str(raised.value)
