"""Models equal their libraries' own calls, also with faster kernels and in lower precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sam2.sam2_image_predictor import SAM2ImagePredictor

from ovseg_batch import scenes
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.methods.resized_masks import above
from ovseg_batch.models import clip as clip_module
from ovseg_batch.models import presets, zoo
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.mask_tokens import MaskTokens, load_tuned
from ovseg_batch.models.precision import precision
from ovseg_batch.models.sam import Sam, build, stability
from ovseg_batch.models.vit import fuse_quick_gelu, run_block
from tests.conftest import Command

CPU = torch.device("cpu")


# ---- embedded models


def test_vanilla_pooled_patches_are_clips_own_image_embedding() -> None:
    """The demo CLIP pools patches, so the mean of our vanilla tokens must be open_clip's own encode_image."""
    clip = DenseClip.load(zoo.resolve("clip", "demo-image"), CPU, "fp32")
    images = clip.normalise(torch.from_numpy(scenes.render(5).image[None, :64, :64]))
    [tokens] = clip.tokens(images, VARIANTS["vanilla"])
    assert torch.allclose(tokens[:, 1:].mean(1), clip.forward_bare(images), atol=1e-5)


def test_layers_are_fractions_of_the_depth_averaged_after_normalising() -> None:
    clip = DenseClip.load(zoo.resolve("clip", "demo-image"), CPU, "fp32")
    images = clip.normalise(torch.from_numpy(scenes.render(5).image[None, :64, :64]))
    single = [clip.patch_features(images, VARIANTS["csa"], [f]) for f in (0.5, 1.0)]
    both = clip.patch_features(images, VARIANTS["csa"], [0.5, 1.0])
    assert torch.allclose(both, F.normalize((single[0] + single[1]) / 2, dim=-1), atol=1e-6)
    assert not torch.allclose(single[0], single[1], atol=1e-2)


def own_predictor(sam: Sam, image: np.ndarray) -> SAM2ImagePredictor:
    """Return the predictor of the sam2 package for an image, with a copy of the model's weights."""
    model = build("demo/sam2.yaml")
    model.load_state_dict(sam.model.state_dict())
    predictor, side = SAM2ImagePredictor(model.eval()), sam.image_size
    predictor._bb_feat_sizes = [(side // 4, side // 4), (side // 8, side // 8), (side // 16, side // 16)]
    predictor.set_image(image)
    return predictor


@pytest.mark.parametrize("size", [(256, 256), (200, 300), (640, 480)])
def test_sam_equals_its_own_predictor(size: tuple[int, int]) -> None:
    sam = Sam.load(zoo.resolve("sam", "demo"), CPU, "fp32", points=2)
    image = np.resize(scenes.render(7).image, (*size, 3))
    points = np.array([[20.0, 30.0], [size[1] / 2, size[0] / 2], [size[1] - 10.0, 40.0]], np.float32)
    [embedding] = sam.embed([image])
    logits, rated = sam.predict(embedding, points)
    predictor = own_predictor(sam, image)
    for k, point in enumerate(points):
        masks, scores, low = predictor.predict(point[None], np.array([1]), multimask_output=True, return_logits=True)
        assert np.abs(logits[k].clamp(-32, 32).numpy() - low).max() < 1e-3
        assert np.abs(rated[k].numpy() - scores).max() < 1e-4
        drawn = np.stack([above(one, size).placed().whole(size) for one in logits[k]])
        assert (drawn != (masks > 0)).mean() < 1e-4


@pytest.mark.parametrize("size", [(256, 256), (200, 300)])
@pytest.mark.parametrize("multimask", [False, True])
def test_boxes_and_rough_masks_equal_its_own_predictor(size: tuple[int, int], multimask: bool) -> None:
    sam = Sam.load(zoo.resolve("sam", "demo"), CPU, "fp32", points=2)
    image = np.resize(scenes.render(7).image, (*size, 3))
    rng = np.random.default_rng(1)
    corners = rng.uniform(5, 90, (3, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(30, 90, (3, 2)).astype(np.float32)], axis=1)
    points = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = sam.image_size
    rough = torch.from_numpy(rng.normal(size=(3, side // 4, side // 4)).astype(np.float32))
    [embedding] = sam.embed([image])
    logits, rated = sam.predict(embedding, points, boxes, rough, multimask=multimask)
    predictor = own_predictor(sam, image)
    for k in range(3):
        _, scores, low = predictor.predict(
            points[k][None], np.array([1]), boxes[k], rough[k].numpy()[None], multimask_output=multimask
        )
        assert np.abs(logits[k].clamp(-32, 32).numpy() - low).max() < 1e-3
        assert np.abs(rated[k].numpy() - scores).max() < 1e-4


@pytest.mark.parametrize("size", [(256, 256), (200, 300)])
def test_boxes_alone_equal_its_own_predictor(size: tuple[int, int]) -> None:
    sam = Sam.load(zoo.resolve("sam", "demo"), CPU, "fp32", points=2)
    image = np.resize(scenes.render(7).image, (*size, 3))
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 90, (5, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(1, 110, (5, 2)).astype(np.float32)], axis=1)
    [embedding] = sam.embed([image])
    logits, rated = sam.predict(embedding, None, boxes, multimask=False)
    assert logits.shape == (5, 1, sam.image_size // 4, sam.image_size // 4)
    predictor = own_predictor(sam, image)
    for k, box in enumerate(boxes):
        masks, scores, low = predictor.predict(box=box, multimask_output=False, return_logits=True)
        assert np.abs(logits[k].clamp(-32, 32).numpy() - low).max() < 1e-3
        assert np.abs(rated[k].numpy() - scores).max() < 1e-4
        drawn = above(logits[k, 0], size).placed().whole(size)
        assert (drawn != (masks[0] > 0)).mean() < 1e-4


def test_image_features_are_open_clips_own() -> None:
    for name in ("demo-image", "demo-token"):
        clip = DenseClip.load(zoo.resolve("clip", name), CPU, "fp32")
        image = np.resize(scenes.render(5).image, (clip.image_size, clip.image_size, 3))
        images = clip.normalise(torch.from_numpy(image[None]))
        own = F.normalize(clip.forward_bare(images), dim=-1)
        assert torch.allclose(clip.image_features(images), own, atol=1e-5), name
        larger = clip.normalise(torch.from_numpy(np.resize(image, (clip.image_size * 3 // 2,) * 2 + (3,))[None]))
        assert clip.image_features(larger).shape == own.shape


def test_image_features_of_a_tower_that_normalises_after_pooling(tmp_path: Path) -> None:
    """CLIPA's towers do."""
    torch.manual_seed(0)
    vision: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    vision |= {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "pos_embed_type": "sin_cos_2d"}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config: dict[str, Any] = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}}
    config["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    model = open_clip.model.CLIP(**config["model_cfg"])
    for norm in (model.visual.ln_post.weight, model.visual.ln_post.bias):
        torch.nn.init.normal_(norm)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    clip = DenseClip.load(zoo.resolve("clip", f"local-dir:{tmp_path}"), CPU, "fp32")
    images = clip.normalise(torch.from_numpy(scenes.render(5).image[None, :32, :32]))
    own = F.normalize(clip.forward_bare(images), dim=-1)
    assert torch.allclose(clip.image_features(images), own, atol=1e-6)


def test_mask_tokens_need_a_class_token_that_speaks() -> None:
    with pytest.raises(OvsegError, match=r"averages its patches.*demo-token"):
        MaskTokens(DenseClip.load(zoo.resolve("clip", "demo"), CPU, "fp32").visual)


def test_query_projections_of_another_clip_are_refused(tmp_path: Path) -> None:
    visual = DenseClip.load(zoo.resolve("clip", "demo-token"), CPU, "fp32").visual
    state = MaskTokens(visual, tuned=True).published_state()
    save_file(state, tmp_path / "good.safetensors")
    load_tuned(visual, str(tmp_path / "good.safetensors"))
    save_file({k: v[..., :-1].contiguous() for k, v in state.items()}, tmp_path / "narrow.safetensors")
    with pytest.raises(OvsegError, match=r"do not fit the query projections of this CLIP: \d+ tensors? of an"):
        load_tuned(visual, str(tmp_path / "narrow.safetensors"))
    save_file({"x": torch.zeros(1)}, tmp_path / "none.safetensors")
    with pytest.raises(OvsegError, match="holds no query projections"):
        load_tuned(visual, str(tmp_path / "none.safetensors"))


def test_chunks_change_nothing() -> None:
    sam = Sam.load(zoo.resolve("sam", "demo"), CPU, "fp32")
    [embedding] = sam.embed([scenes.render(7).image])
    points = np.random.default_rng(0).uniform(0, 190, (7, 2)).astype(np.float32)
    logits = []
    for size in (1, 7):
        sam.points = BatchSize(size)
        logits.append(sam.predict(embedding, points)[0])
    one, many = logits
    assert torch.allclose(one, many, atol=1e-3)


def test_stability_is_sam2s() -> None:
    from sam2.utils.amg import calculate_stability_score

    logits = torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2
    assert torch.allclose(stability(logits), calculate_stability_score(logits, 0.0, 1.0))


def test_sam_still_builds_from_the_package_after_the_embedded_one() -> None:
    """Hydra has one global search path; the embedded config must not leave it pointing elsewhere."""

    build("demo/sam2.yaml")
    assert build("configs/sam2.1/sam2.1_hiera_t.yaml").image_size == 1024


# ---- speed: other kernels, the same numbers


@pytest.mark.parametrize("name", ["demo", "demo-token"])
def test_own_blocks_equal_open_clip_s(name: str) -> None:
    spec = zoo.resolve("clip", name)
    model: Any = clip_module.build(spec)[0]
    x = torch.randn(2, 17, model.visual.conv1.out_channels, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for block in model.eval().visual.transformer.resblocks:
            assert torch.allclose(run_block(block, x), block(x), atol=1e-5)


def test_quick_gelu_in_one_pass() -> None:
    model = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False).eval()
    block = model.visual.transformer.resblocks[3]
    x = torch.randn(2, 5, 768, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = block.mlp(x)
        fuse_quick_gelu(model.visual)
        assert isinstance(block.mlp.gelu, torch.nn.SiLU)
        assert torch.allclose(block.mlp(x), before, atol=1e-6)


def test_bf16_sees_what_fp32_sees() -> None:
    """Weights of products are kept in bf16, norms in fp32; features and masks stay what they are."""
    image = scenes.render(7).image
    full, low = (DenseClip.load(zoo.resolve("clip", "demo"), CPU, kind) for kind in ("fp32", "bf16"))
    block = low.visual.transformer.resblocks[0]
    assert block.mlp.c_fc.weight.dtype == block.attn.in_proj_weight.dtype == torch.bfloat16
    assert block.ln_1.weight.dtype == torch.float32
    batch = full.normalise(torch.from_numpy(image[None, :128, :128].copy()))
    one, other = (c.patch_features(batch, VARIANTS["csa"]) for c in (full, low))
    likeness = F.cosine_similarity(one, other, dim=-1)
    assert likeness.min() > 0.99
    points = np.array([[40.0, 60.0], [128.0, 128.0], [200.0, 30.0]], np.float32)
    drawn = []
    for kind in ("fp32", "bf16"):
        sam = Sam.load(zoo.resolve("sam", "demo"), CPU, kind)
        logits, rated = sam.predict(sam.embed([image])[0], points)
        drawn.append(logits[torch.arange(3), rated.argmax(dim=1)] > 0)
    overlap = (drawn[0] & drawn[1]).sum(dim=(1, 2)) / (drawn[0] | drawn[1]).sum(dim=(1, 2))
    assert overlap.min() > 0.95


def test_auto_is_bf16_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg_batch.models.precision.has_amx", lambda: True)
    assert precision("auto", "cpu", large=True) == "bf16"
    assert precision("auto", "cpu") == "fp32"  # the embedded models: products are not what takes their time
    assert precision("fp32", "cpu", large=True) == "fp32"
    monkeypatch.setattr("ovseg_batch.models.precision.has_amx", lambda: False)
    assert precision("auto", "cpu", large=True) == "fp32"


def test_an_embedding_that_was_kept_is_as_good() -> None:
    image = scenes.render(7).image
    sam = Sam.load(zoo.resolve("sam", "demo"), CPU, "fp32")
    [embedding] = sam.embed([image])
    arrays = Sam.arrays_of(embedding)
    assert all(array.dtype == np.float16 for array in arrays.values())
    points = np.array([[40.0, 60.0], [128.0, 128.0]], np.float32)
    now, then = (sam.predict(e, points)[0] for e in (embedding, sam.embedding_of(arrays, image.shape[:2])))
    assert ((now > 0) == (then > 0)).float().mean() > 0.999


def test_device_that_is_not_there() -> None:
    for device in ("cuda:99", "tpu"):
        with pytest.raises(UsageError, match=device):
            resolve_device(device)


def test_models_list_names_every_preset(command: Command) -> None:
    listed = command("models", "list").stdout
    for name in (*presets.CLIP, *presets.SAM):
        assert name in listed
    assert "CC-BY-NC-4.0" in listed


def test_every_preset_names_something_its_library_knows() -> None:
    for name, preset in presets.CLIP.items():
        if preset.tag:
            assert open_clip.get_model_config(preset.architecture), name
            assert open_clip.pretrained.get_pretrained_cfg(preset.architecture, preset.tag).get("hf_hub"), name
        else:
            assert preset.embedded or preset.architecture in presets.TIPSV2_CONFIGS
