"""TIPSv2's patches and words are those of transformers, and its files are checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Tipsv2Config, Tipsv2Model, Tipsv2Tokenizer
from transformers.models.tipsv2.image_processing_tipsv2 import Tipsv2ImageProcessor

from ovseg_batch import scenes
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.models import presets, zoo
from ovseg_batch.models.check import check_model
from ovseg_batch.models.encoders import blocks_of, load_encoder
from ovseg_batch.models.missing import MissingModels
from ovseg_batch.models.tipsv2 import Tipsv2, load_model
from ovseg_batch.models.tipsv2_layout import tipsv2_layout
from ovseg_batch.models.tipsv2_tokens import token_ids
from tests.support.tiny_tipsv2 import save_tiny_tipsv2, write_tokenizer

CPU = torch.device("cpu")
VANILLA = VARIANTS["vanilla"]
WORDS = ["car", "A photo of a traffic LIGHT.", "tree", "a bright scene with a large sky"]
#: the config of `folder` in the layout of the published repositories, but for the kind of the image tower
PUBLISHED = {
    **{"model_type": "tipsv2", "patch_size": 14, "img_size": 56, "num_register_tokens": 1, "vocab_size": 420},
    **{"max_len": 64, "vision_fn": "tiny", "embed_dim": 32, "text_hidden_size": 32, "text_mlp_dim": 64},
    **{"text_num_heads": 2, "text_num_layers": 2, "ffn_layer": "mlp", "temperature": 0.01},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tipsv2(tmp_path_factory.mktemp("tipsv2"))


def spec_of(folder: Path, weights: str | None = None) -> zoo.ModelSpec:
    return zoo.resolve("clip", f"local-dir:{folder}", weights)


def theirs_of(folder: Path) -> Any:
    return Tipsv2Model.from_pretrained(folder, local_files_only=True).eval()


def picture(height: int, width: int) -> torch.Tensor:
    """Return a scene as (1, H, W, 3) uint8."""
    return torch.from_numpy(np.resize(scenes.render(7).image, (height, width, 3)))[None]


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("size", [(56, 56), (84, 56), (70, 154)])
def test_patches_are_those_of_transformers(size: tuple[int, int], swiglu: bool, tmp_path: Path) -> None:
    folder = save_tiny_tipsv2(tmp_path, swiglu=swiglu)
    ours, theirs = Tipsv2.load(spec_of(folder), CPU, "fp32"), theirs_of(folder)
    images = ours.normalise(picture(*size))
    with torch.inference_mode():
        out = theirs.get_image_features(pixel_values=images)
    expected = torch.nn.functional.normalize(out.last_hidden_state[:, 2:], dim=-1)
    found = ours.patch_features(images, VANILLA)
    assert found.shape == (1, size[0] // 14, size[1] // 14, 32)
    assert (found.flatten(1, 2) - expected).abs().max() < 1e-6
    assert torch.allclose(ours.forward_bare(images), out.pooler_output, atol=1e-5, rtol=0)
    assert found.flatten(0, 2).std(dim=0).mean() > 0.01, "patches differ"


def test_pixels_are_those_of_the_image_processor(folder: Path) -> None:
    image = picture(56, 56)
    processor = Tipsv2ImageProcessor(size={"height": 56, "width": 56})
    theirs = processor(images=image[0].numpy(), return_tensors="pt")["pixel_values"]
    ours = Tipsv2.load(spec_of(folder), CPU, "fp32").normalise(image)
    assert ours.min() >= 0 and ours.max() <= 1
    assert (ours - theirs).abs().max() < 1e-6


def test_images_together_and_alone(folder: Path) -> None:
    ours = Tipsv2.load(spec_of(folder), CPU, "fp32")
    images = ours.normalise(torch.cat([picture(56, 70), picture(56, 70).flip(2)]))
    together = ours.patch_features(images, VANILLA)
    for k in range(2):
        assert (ours.patch_features(images[k : k + 1], VANILLA)[0] - together[k]).abs().max() < 1e-6


def test_words_are_those_of_transformers(folder: Path) -> None:
    """Theirs are padded to 64 tokens, ours not at all."""
    tokenizer = Tipsv2Tokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(WORDS, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        out = theirs_of(folder).get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
    found = Tipsv2.load(spec_of(folder), CPU, "fp32").encode_text(WORDS)
    assert (found - torch.nn.functional.normalize(out.pooler_output, dim=-1)).abs().max() < 1e-6
    assert (found[0] - found[2]).abs().max() > 0.01, "words differ"


def test_a_word_alone_is_as_beside_others(folder: Path) -> None:
    ours = Tipsv2.load(spec_of(folder), CPU, "fp32")
    together = ours.encode_text([*WORDS, "car"])
    assert torch.allclose(together[0], together[4], atol=1e-6, rtol=0)
    for k, word in enumerate(WORDS):
        assert torch.allclose(ours.encode_text([word])[0], together[k], atol=1e-6, rtol=0)


def test_both_files_of_a_tokenizer_give_the_ids_of_transformers(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tipsv2Tokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.save_pretrained(tmp_path)
    for text in [*WORDS, "  two  spaces ", "Straße, 車 and naïve", "the tree"]:
        expected = tokenizer(text)["input_ids"]
        assert token_ids(text, str(folder / "tokenizer.model")) == expected
        assert token_ids(text, str(tmp_path / "tokenizer.json")) == expected


def test_half_precision_moves_patches_little(folder: Path) -> None:
    exact, half = (Tipsv2.load(spec_of(folder), CPU, kind) for kind in ("fp32", "bf16"))
    images = exact.normalise(picture(56, 84))
    one, other = (encoder.patch_features(images, VANILLA) for encoder in (exact, half))
    assert other.dtype == torch.float32 and 0 < (one - other).abs().max() < 0.05
    assert torch.equal(exact.encode_text(WORDS), half.encode_text(WORDS))


def test_a_folder_in_the_published_layout_is_the_same_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published config has other keys, and the file no temperature."""
    monkeypatch.setitem(tipsv2_layout.__globals__["VISION"], "tiny", (2, 2, 4.0))
    shutil.copy(folder / "tokenizer.model", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    state = load_file(folder / "model.safetensors")
    assert "vision_encoder.blocks.0.attn.qkv.weight" in state and state.pop("temperature") > 0
    save_file(state, tmp_path / "model.safetensors")
    spec = spec_of(tmp_path)
    assert (spec.window, spec.patch, spec.width, spec.context) == (56, 14, 32, 64)
    assert spec.logit_scale == pytest.approx(100) and spec_of(folder).logit_scale == pytest.approx(197.4, abs=0.1)
    one, other = (Tipsv2.load(each, CPU, "fp32") for each in (spec, spec_of(folder)))
    images = one.normalise(picture(56, 56))
    assert torch.equal(one.patch_features(images, VANILLA), other.patch_features(images, VANILLA))
    assert torch.equal(one.encode_text(WORDS), other.encode_text(WORDS))


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    whole, file = load_file(folder / "model.safetensors"), tmp_path / "weights.safetensors"
    for lost in whole:
        if lost == "temperature":
            continue
        save_file({name: tensor for name, tensor in whole.items() if name != lost}, file)
        with pytest.raises(OvsegError, match=r"do not fit the TIPSv2.*tensors? missing"):
            load_model(spec_of(folder, str(file)))
    save_file({**whole, "vision_encoder.blocks.2.norm1.weight": torch.ones(32)}, file)
    with pytest.raises(OvsegError, match=r"do not fit the TIPSv2.*1 tensor unknown"):
        load_model(spec_of(folder, str(file)))
    save_file({**whole, "vision_encoder.cls_token": torch.ones(1, 1, 33)}, file)
    with pytest.raises(OvsegError, match=r"do not fit the TIPSv2.*of another shape"):
        load_model(spec_of(folder, str(file)))


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match="must be safetensors"):
        spec_of(folder, str(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("lost", "config", "expected"),
    [
        ("tokenizer.model", None, "has no tokenizer.model and no tokenizer.json"),
        ("model.safetensors", None, "no weights file"),
        ("", {**PUBLISHED, "vision_fn": "vit_huge"}, "is no readable config of a TIPSv2"),
        ("", {"model_type": "tipsv2", "vision_config": {"image_size": "big"}}, "is no readable config of a TIPSv2"),
        ("", {"model_type": "siglip"}, "has no readable open_clip_config.json"),
    ],
)
def test_an_incomplete_folder_is_named(
    lost: str, config: dict[str, Any] | None, expected: str, folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    if lost:
        (copy / lost).unlink()
    if config is not None:
        (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=expected):
        spec_of(copy)


def test_a_damaged_tokenizer_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"{}" * 9)
        with pytest.raises(OvsegError, match=f"{name} cannot be read as a tokenizer"):
            token_ids("a", str(tmp_path / name))


def test_every_file_is_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    before = spec_of(folder).identity()
    assert set(before) == {"model", "weights", "config", "tokenizer"}
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    for name, key in (("model.safetensors", "weights"), ("config.json", "config"), ("tokenizer.model", "tokenizer")):
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        assert spec_of(copy).identity()[key] != before[key]


def test_the_interface_of_encoders(folder: Path) -> None:
    encoder = load_encoder(spec_of(folder), CPU, "fp32")
    assert isinstance(encoder, Tipsv2) and (encoder.patch, encoder.image_size) == (14, 56)
    with pytest.raises(UsageError, match="blocks of a CLIP"):
        blocks_of(encoder)
    images = encoder.normalise(picture(56, 56))
    for refused in ((VARIANTS["csa"], (1.0,)), (VANILLA, (0.5,))):
        with pytest.raises(ValueError, match="no attention but its own"):
            encoder.patch_features(images, *refused)
    assert check_model(spec_of(folder), "cpu")["patches"] == "4 × 4 of 56 pixels, 32 features"


def test_named_models_have_the_published_sizes() -> None:
    for name, preset in presets.CLIP.items():
        if preset.architecture not in presets.TIPSV2_CONFIGS:
            continue
        layout = tipsv2_layout(name)
        config: Any = Tipsv2Config(**layout.config)
        with torch.device("meta"):
            model = Tipsv2Model(config)
        assert preset.size == 4 * sum(
            one.numel() for one in (*model.vision_model.parameters(), *model.text_model.parameters())
        )
        assert (layout.side, layout.patch, layout.context) == (448, 14, 64)
        assert layout.width == config.text_config.hidden_size


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OVSEG_CHECKPOINTS", str(tmp_path))
    with pytest.raises(MissingModels, match=r"tipsv2-b14 is not on this machine \(TIPSv2 weights, .*Apache-2.0"):
        zoo.resolve("clip", "tipsv2-b14")
    (tmp_path / "tipsv2-b14.safetensors").write_bytes(b"weights")
    with pytest.raises(
        MissingModels, match=r"tipsv2-b14 .*tokenizer of google/tipsv2-b14.*has tipsv2-b14.tokenizer.model"
    ):
        zoo.resolve("clip", "tipsv2-b14")
    write_tokenizer(tmp_path / "tipsv2-b14.tokenizer.model")
    spec = zoo.resolve("clip", "tipsv2-b14")
    assert (spec.window, spec.short_side, spec.patch, spec.licence) == (448, 672, 14, "Apache-2.0")
    assert spec.weights == str(tmp_path / "tipsv2-b14.safetensors")


@pytest.mark.slow("TIPSv2's published files load at their full size")
@pytest.mark.parametrize("name", ["tipsv2-b14", "tipsv2-l14"])
def test_a_full_size_file_in_the_hub_s_layout_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers writes the published names; the values are random."""
    monkeypatch.setenv("OVSEG_CHECKPOINTS", str(tmp_path))
    write_tokenizer(tmp_path / f"{name}.tokenizer.model")
    torch.manual_seed(0)
    theirs: Any = Tipsv2Model(Tipsv2Config(**tipsv2_layout(name).config)).eval()
    written = tmp_path / f"{name}.safetensors"
    try:
        theirs.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(written)
        ours = Tipsv2.load(zoo.resolve("clip", name), CPU, "fp32")
        assert all(torch.equal(one, ours.model.state_dict()[key]) for key, one in theirs.state_dict().items())
        images = ours.normalise(picture(448, 448))
        with torch.inference_mode():
            out = theirs.get_image_features(pixel_values=images).last_hidden_state[:, 2:]
        expected = torch.nn.functional.normalize(out, dim=-1)
        assert (ours.patch_features(images, VANILLA).flatten(1, 2) - expected).abs().max() < 1e-5
    finally:
        written.unlink(missing_ok=True)
