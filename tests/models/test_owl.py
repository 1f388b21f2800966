"""OWLv2's boxes, embeddings and scores are those of transformers, and its weights are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Owlv2Config, Owlv2ForObjectDetection
from transformers.models.owlv2.image_processing_owlv2 import Owlv2ImageProcessor

from ovseg_batch import scenes
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.models import presets, zoo
from ovseg_batch.models.clip_tokens import token_ids
from ovseg_batch.models.missing import MissingModels
from ovseg_batch.models.owl import Detections, Owl, OwlText, load_model
from tests.support.tiny_owl import save_tiny_owl

CPU = torch.device("cpu")
WORDS = ("car", "a photo of a traffic light", "tree", "sky")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_owl(tmp_path_factory.mktemp("owl"))


def spec_of(folder: Path) -> zoo.ModelSpec:
    return zoo.resolve("owl", f"local-dir:{folder}")


def theirs_of(folder: Path) -> Any:
    """Return the model of transformers. Its weights are copied: in a mapped file they begin at unusual addresses."""
    model = Owlv2ForObjectDetection(Owlv2Config.from_pretrained(folder))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def tokens(words: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return what `Owlv2Processor` gives for words: padded with 0."""
    known = [token_ids(word) for word in words]
    return {
        "input_ids": torch.tensor([ids + [0] * (16 - len(ids)) for ids in known]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (16 - len(ids)) for ids in known]),
    }


def logits(found: Detections, word: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return (P,) logits with the operations of the class head."""
    query = torch.from_numpy(word)[None, None]
    query = query / (torch.linalg.norm(query, dim=-1, keepdim=True) + 1e-6)
    cosine = torch.einsum("...pd,...qd->...pq", found.embeddings[None], query)
    return ((cosine + found.calibration[None, :, :1]) * found.calibration[None, :, 1:])[0, :, 0]


@pytest.mark.parametrize("size", [(96, 96), (120, 200), (150, 60)])
def test_logits_and_boxes_are_those_of_transformers(folder: Path, size: tuple[int, int]) -> None:
    image = scenes.render(7).image[: size[0], : size[1]]
    image = np.resize(image, (*size, 3))
    spec = spec_of(folder)
    owl, text = Owl.load(spec, CPU, "fp32"), OwlText.load(spec)
    found = owl.detect(image)
    theirs = theirs_of(folder)
    processor = Owlv2ImageProcessor(size={"height": 96, "width": 96})
    for word, embedding in zip(WORDS, text.encode(WORDS), strict=True):
        with torch.inference_mode():
            out = theirs(pixel_values=owl.preprocess(image)[None], **tokens((word,)))
        assert torch.equal(logits(found, embedding), out.logits[0, :, 0])
        assert torch.equal(torch.from_numpy(embedding), out.text_embeds[0, 0])
        assert torch.equal(found.objectness, out.objectness_logits[0].sigmoid())
        [result] = processor.post_process_object_detection(out, threshold=0.0, target_sizes=[size])
        clipped = result["boxes"].clamp(min=0)
        clipped = torch.minimum(clipped, torch.tensor([size[1], size[0]] * 2))
        assert (found.boxes - clipped).abs().max() < 1e-4
    assert (found.boxes[:, 2] <= size[1]).all() and (found.boxes[:, 3] <= size[0]).all()


def test_pixels_of_the_image_processor_give_the_same(folder: Path) -> None:
    image = np.resize(scenes.render(7).image, (150, 220, 3))
    owl = Owl.load(spec_of(folder), CPU, "fp32")
    processor = Owlv2ImageProcessor(size={"height": 96, "width": 96})
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(owl.preprocess(image)[None], theirs, atol=1e-5, rtol=0)


def test_a_word_has_the_same_bytes_alone_and_beside_others(folder: Path) -> None:
    text = OwlText.load(spec_of(folder))
    together = text.encode(WORDS)
    for k, word in enumerate(WORDS):
        assert np.array_equal(text.encode([word])[0], together[k])
    assert text.encode([]).shape == (0, 24)


def test_words_of_transformers_beside_others_are_as_good(folder: Path) -> None:
    theirs = theirs_of(folder)
    pixels = torch.zeros(1, 3, 96, 96)
    with torch.inference_mode():
        out = theirs(pixel_values=pixels, **tokens(WORDS))
    assert np.allclose(OwlText.load(spec_of(folder)).encode(WORDS), out.text_embeds[0], atol=1e-6)


def test_half_precision_moves_boxes_little(folder: Path) -> None:
    image = np.resize(scenes.render(7).image, (400, 600, 3))
    exact, half = (Owl.load(spec_of(folder), CPU, kind).detect(image) for kind in ("fp32", "bf16"))
    assert half.boxes.dtype == torch.float32
    assert (exact.boxes - half.boxes).abs().mean() < 0.01 * 600
    assert (exact.objectness - half.objectness).abs().max() < 0.05


def test_a_prompt_that_is_too_long_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="has 17 tokens, and OWLv2 takes 16"):
        OwlText.load(spec_of(folder)).encode(["cat " * 15])


def test_random_weights_have_the_shapes_of_the_named_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, preset in presets.OWL.items():
        spec, config = zoo.resolve("owl", name, "random:3"), Owlv2Config(**presets.OWL_CONFIGS[preset.architecture])
        vision, text = cast(Any, config).vision_config, cast(Any, config).text_config
        assert (spec.window, spec.patch, spec.width) == (vision.image_size, vision.patch_size, text.hidden_size)
        with torch.device("meta"):
            model = Owlv2ForObjectDetection(config)
        assert preset.size == 4 * sum(parameter.numel() for parameter in model.parameters())
    small = {"text_config": {"num_hidden_layers": 1}, "vision_config": {"num_hidden_layers": 1, "image_size": 64}}
    monkeypatch.setitem(presets.OWL_CONFIGS, "owlv2/base-patch16", small)
    one, again, other = (load_model(zoo.resolve("owl", "owlv2-base", f"random:{seed}")) for seed in (3, 3, 4))
    weights = [model.state_dict()["class_head.dense0.weight"] for model in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    file = str(tmp_path / "weights.safetensors")
    del state["class_head.dense0.weight"]
    save_file({**state, "class_head.dense9.weight": torch.ones(2)}, file)
    spec = zoo.resolve("owl", f"local-dir:{folder}", file)
    with pytest.raises(OvsegError, match=r"do not fit the OWLv2.*1 tensor missing \(class_head.dense0.weight.*dense9"):
        Owl.load(spec, CPU, "fp32")


def test_buffers_in_older_files_are_skipped(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    file = str(tmp_path / "weights.safetensors")
    save_file({**state, "owlv2.text_model.embeddings.position_ids": torch.zeros(1, 16)}, file)
    words = OwlText.load(zoo.resolve("owl", f"local-dir:{folder}", file)).encode(WORDS)
    assert np.array_equal(words, OwlText.load(spec_of(folder)).encode(WORDS))


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        ("owlv2-bsae", None, "Did you mean 'owlv2-base'"),
        ("local-dir:FOLDER", None, "has no readable config.json"),
        ("local-dir:FOLDER", {"vision_config": {}}, "no weights file"),
    ],
)
def test_a_wrong_model_is_named(model: str, config: dict[str, Any] | None, expected: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=expected):
        zoo.resolve("owl", model.replace("FOLDER", str(tmp_path)))


def test_weights_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingModels, match=r"owlv2-large is not on this machine \(OWLv2 weights, .*Apache-2.0"):
        zoo.resolve("owl", "owlv2-large")


@pytest.mark.slow("OWLv2's published files load at their full size")
@pytest.mark.parametrize("name", presets.OWL)
def test_a_full_size_file_in_the_hub_s_layout_loads(name: str, tmp_path: Path) -> None:
    """The names are those that transformers reads; the values are random."""
    config = Owlv2Config(**presets.OWL_CONFIGS[presets.OWL[name].architecture])
    torch.manual_seed(0)
    written = tmp_path / "model.safetensors"
    try:
        Owlv2ForObjectDetection(config).save_pretrained(tmp_path)
        spec = zoo.resolve("owl", name, str(written))
        owl, cells = Owl.load(spec, CPU, "fp32"), (spec.window // spec.patch) ** 2
        if name == "owlv2-base":  # a forward of the large one takes a minute
            found = owl.detect(scenes.render(7).image)
            assert found.boxes.shape == (cells, 4) and found.embeddings.shape == (cells, spec.width)
        assert OwlText.load(spec).encode(["cat"]).shape == (1, spec.width)
    finally:
        written.unlink(missing_ok=True)
