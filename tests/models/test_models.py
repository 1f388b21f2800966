"""Models load from upstream file formats, equal their libraries' own calls, and refuse what would be silently wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import skimage
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sam2.sam2_image_predictor import SAM2ImagePredictor

from ovseg_batch import scenes
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.io import hashing, user_cache
from ovseg_batch.methods.attention import VARIANTS, attend, neighbourhood
from ovseg_batch.methods.stitching import Stitched
from ovseg_batch.methods.windows import resized_size, window_boxes
from ovseg_batch.models import clip as clip_module
from ovseg_batch.models import presets, zoo
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.mask_tokens import MaskTokens, load_tuned
from ovseg_batch.models.precision import precision
from ovseg_batch.models.sam import Sam, build, stability
from ovseg_batch.models.vit import fuse_quick_gelu, run_block
from ovseg_batch.models.weights import read_state_dict
from tests.conftest import Command

CPU = torch.device("cpu")


# ---- attention and windows


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, name: str) -> torch.Tensor:
    """The formulas of METHODS, written out with full attention matrices."""
    scale = q.shape[-1] ** -0.5
    qk, qq, kk = ((a @ b.transpose(-1, -2) * scale) for a, b in ((q, k), (q, q), (k, k)))
    weights = {
        "vanilla": lambda: qk.softmax(-1),
        "maskclip": lambda: torch.eye(q.shape[-2]),
        "maskclip-reduced": lambda: torch.eye(q.shape[-2]),
        "v2": lambda: 2 * torch.eye(q.shape[-2]),
        "csa": lambda: qq.softmax(-1) + kk.softmax(-1),
        "csa-joint": lambda: (qq + kk).softmax(-1),
        "clearclip": lambda: qq.softmax(-1),
        "naclip": lambda: kk.softmax(-1),
        "itaclip": lambda: qq.softmax(-1) + kk.softmax(-1),
    }[name]()
    return weights @ v


@pytest.mark.parametrize("name", list(VARIANTS))
def test_attention_equals_its_formula(name: str) -> None:
    q, k, v = torch.randn(3, 2, 4, 17, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(attend(q, k, v, VARIANTS[name]), reference(q, k, v, name), atol=1e-5)


def test_the_neighbourhood_is_a_gaussian_of_the_distance_and_leaves_the_class_token_out() -> None:
    prior = neighbourhood((3, 5), 2.0)
    assert prior.shape == (16, 16) and prior[0].abs().sum() == prior[:, 0].abs().sum() == 0
    first, second = 1 + 0 * 5 + 1, 1 + 2 * 5 + 4  # patches (0, 1) and (2, 4)
    assert prior[first, second].item() == pytest.approx(np.exp(-(2**2 + 3**2) / 8))
    assert (prior.diagonal()[1:] == 1).all() and torch.equal(prior, prior.T)


def test_blocks_below_give_half_of_the_weights() -> None:
    q, k, v, r, s = torch.randn(5, 2, 4, 17, 16, generator=torch.Generator().manual_seed(0))
    own, other = (reference(a, b, v, "itaclip") for a, b in ((q, k), (r, s)))
    fused = attend(q, k, v, VARIANTS["itaclip"], below=[(r, s)])
    assert torch.allclose(fused, (own + other) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "short", "result"),
    [
        ((500, 375), 336, (448, 336)),
        ((100, 1000), 336, (205, 2048)),
        ((333, 500), None, (333, 500)),
        ((1000, 4096), None, (500, 2048)),
    ],
)
def test_resize_keeps_proportions_and_the_long_side(
    size: tuple[int, int], short: int | None, result: tuple[int, int]
) -> None:
    assert resized_size(*size, short, 2048) == result


def test_last_window_is_shifted_back_inside() -> None:
    assert window_boxes(336, 500, 224, 112).tolist() == [
        [y, x, y + 224, x + 224] for y in (0, 112) for x in (0, 112, 224, 276)
    ]
    assert window_boxes(100, 300, 224, 112).tolist() == [[0, 0, 100, 224], [0, 76, 100, 300]]


def test_stitching_constant_windows_is_their_mean() -> None:
    boxes = window_boxes(4, 6, 4, 2)
    out = Stitched(torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, 2, 2), boxes, (4, 6)).whole()
    assert out[0, 0].tolist() == [1, 1, 2, 2, 3, 3]


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
    assert torch.allclose(both, F.normalize(sum(single) / 2, dim=-1), atol=1e-6)
    assert not torch.allclose(single[0], single[1], atol=1e-2)


def own_predictor(sam: Sam, image: np.ndarray) -> SAM2ImagePredictor:
    """The sam2 package's, over a model of its own with the same weights, at `image`."""
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
        assert ((Sam.upsample(logits[k], size) > 0).numpy() != (masks > 0)).mean() < 1e-4


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


def test_image_features_are_open_clips_own() -> None:
    for name in ("demo-image", "demo-token"):
        clip = DenseClip.load(zoo.resolve("clip", name), CPU, "fp32")
        image = np.resize(scenes.render(5).image, (clip.image_size, clip.image_size, 3))
        images = clip.normalise(torch.from_numpy(image[None]))
        own = F.normalize(clip.forward_bare(images), dim=-1)
        assert torch.allclose(clip.image_features(images), own, atol=1e-5), name
        larger = clip.normalise(torch.from_numpy(np.resize(image, (clip.image_size * 3 // 2,) * 2 + (3,))[None]))
        assert clip.image_features(larger).shape == own.shape


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
    model, *_ = clip_module.build(spec)
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
    likeness = F.cosine_similarity(*(c.patch_features(batch, VARIANTS["csa"]) for c in (full, low)), dim=-1)
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
    told = command("models", "check", "--clip", "ViT-B-16-quickgelu", "--clip-weights", upstream / file)
    assert told.returncode == 0, told.stderr
    assert "QuickGELU" in told.stdout and "149,620,737" in told.stdout and "14 × 14" in told.stdout


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


@pytest.mark.parametrize("letter", ["t", "l"])
def test_metas_layout_passes_models_check(upstream: Path, command: Command, letter: str) -> None:
    config = f"configs/sam2.1/sam2.1_hiera_{letter}.yaml"
    told = command("models", "check", "--sam", config, "--sam-weights", upstream / f"sam2.1_{letter}.pt")
    assert told.returncode == 0, told.stderr
    assert "3 of 256 × 256 a point" in told.stdout


PHOTOGRAPHS = {
    "astronaut.png": (512, 512),
    "chelsea.png": (451, 300),
    "coffee.png": (600, 400),
    "rocket.jpg": (640, 427),
}


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


def test_image_tower_that_is_no_vit() -> None:
    with pytest.raises(UsageError, match="image tower is a ModifiedResNet"):
        DenseClip.load(zoo.resolve("clip", "RN50", "random:0"), CPU, "fp32")


def test_device_that_is_not_there() -> None:
    for device in ("cuda:99", "tpu"):
        with pytest.raises(UsageError, match=device):
            resolve_device(device)


def test_models_list_names_every_preset(command: Command) -> None:
    told = command("models", "list").stdout
    for name in (*presets.CLIP, *presets.SAM):
        assert name in told
    assert "CC-BY-NC-4.0" in told


def test_every_preset_names_something_its_library_knows() -> None:
    for name, preset in presets.CLIP.items():
        if not preset.embedded:
            assert open_clip.get_model_config(preset.architecture), name
            assert open_clip.pretrained.get_pretrained_cfg(preset.architecture, preset.tag).get("hf_hub"), name


def test_the_hash_of_a_large_file_is_kept_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def content_hash(file: Path, compute: Callable[[Path], str] = hashing._whole_hash) -> str:
        read.append(file)
        return compute(file)

    monkeypatch.setattr(hashing, "LARGE", 0)
    monkeypatch.setattr(hashing, "_whole_hash", content_hash)
    monkeypatch.setattr(user_cache, "SETTLED_SECONDS", -1)
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights.pt"

    def hashed() -> str:
        hashing._hash.cache_clear()  # as in another process
        return hashing.file_hash(file)

    file.write_bytes(b"first")
    first = hashed()
    assert hashed() == first and len(read) == 1
    times = file.stat().st_mtime_ns
    file.write_bytes(b"other")
    os.utime(file, ns=(times, times))  # size and time of writing are those of before
    other = hashed()
    assert other != first and len(read) == 2
    (record,) = (tmp_path / "cache" / "hashes").iterdir()
    for damaged in ("", "[]", '{"file": null}', record.read_text()[:-5]):
        record.write_text(damaged)
        assert hashed() == other
    assert len(read) == 6
    monkeypatch.setattr(user_cache, "SETTLED_SECONDS", 60.0)
    record.unlink()
    assert hashed() == other and not record.exists()


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
