"""Other people's numbers on equal weights: SCLIP's, and those of every method that has public code.

A mean instead of a sum, another GELU or another resize stand far outside.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from ovseg_batch.evaluate.metrics import SemanticScore
from ovseg_batch.evaluate.panoptic import PanopticScore
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.methods.class_scores import class_probabilities, query_feature
from ovseg_batch.methods.labelling import label_map
from ovseg_batch.methods.maskclip import denoise_prompts, smooth_by_keys
from ovseg_batch.methods.pamr import pamr
from ovseg_batch.methods.stitching import Stitched
from ovseg_batch.methods.views import mixed_logits
from ovseg_batch.methods.vocabulary import TEMPLATES, Vocabulary
from ovseg_batch.methods.windows import window_boxes
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.inception import WEIGHTS, Inception, inception_weights
from ovseg_batch.models.mask_tokens import MaskTokens, load_tuned, touched_patches

DATA = Path(__file__).parents[1] / "data" / "parity"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENS, LOGITS, PROBABILITIES, SEG = 2e-5, 5e-6, 5e-5, 2e-4
SCALE = 40.0


WINDOWS = {"square": (0, 0, 224, 224), "wide": (50, 30, 210, 286)}


@pytest.fixture(scope="module")
def clip() -> DenseClip:
    return build(dict(load_file(DATA / "clip_tiny_openai.safetensors")))


@pytest.fixture(scope="module")
def deep_clip() -> DenseClip:
    """Twelve blocks: the four, three times over."""
    state = dict(load_file(DATA / "clip_tiny_openai.safetensors"))
    blocks = "visual.transformer.resblocks."
    for name in [name for name in state if name.startswith(blocks)]:
        number, _, rest = name.removeprefix(blocks).partition(".")
        for more in (4, 8):
            state[f"{blocks}{int(number) + more}.{rest}"] = state[name]
    return build(state)


def build(state: dict[str, torch.Tensor]) -> DenseClip:
    used = np.load(DATA / "token_embedding_used.npz")
    table = torch.zeros(int(used["vocab"]), used["rows"].shape[1], dtype=torch.float16)
    table[torch.from_numpy(used["ids"])] = torch.from_numpy(used["rows"])
    state["token_embedding.weight"] = table
    model = open_clip.model.build_model_from_openai_state_dict(state, cast_dtype=torch.float32).float().eval()
    return DenseClip(model, open_clip.get_tokenizer("ViT-B-16"), "test", MEAN, STD, torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(DATA / "image_336x448.png").convert("RGB")).copy())


def text_features(clip: DenseClip, words: list[str]) -> torch.Tensor:
    prompts = [[template.format(word) for template in TEMPLATES["openai80"]] for word in words]
    return torch.stack([query_feature(clip.encode_text(group)) for group in prompts])


def test_templates_are_the_published_ones_in_order() -> None:
    assert list(TEMPLATES["openai80"]) == np.load(DATA / "text.npz")["templates"].tolist()


def test_text_features(clip: DenseClip) -> None:
    text = np.load(DATA / "text.npz")
    for words, features in (("words", "query_features"), ("plain_words", "query_features_plain")):
        ours = text_features(clip, text[words].tolist())
        assert np.abs(ours.numpy() - text[features]).max() <= TOKENS


@pytest.mark.parametrize("variant", ["vanilla", "csa"])
def test_tokens_of_one_window(clip: DenseClip, image: torch.Tensor, variant: str) -> None:
    window = np.load(DATA / "single_window.npz")
    y0, x0, y1, x1 = window["window_yxyx"]
    [tokens] = clip.tokens(clip.normalise(image[None, y0:y1, x0:x1]), VARIANTS[variant])
    assert np.abs(tokens[0].numpy() - window[f"tokens_{variant}"]).max() <= TOKENS
    assert np.abs(tokens[0, :1].numpy() - window[f"enc_image_{variant}"]).max() <= TOKENS


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("variant", ["maskclip", "maskclip-reduced", "clearclip", "naclip", "itaclip"])
def test_tokens_of_other_methods(deep_clip: DenseClip, image: torch.Tensor, variant: str, window: str) -> None:
    """Each method's own code; the class token, which none of them uses, is the first."""
    y0, x0, y1, x1 = WINDOWS[window]
    [tokens] = deep_clip.tokens(deep_clip.normalise(image[None, y0:y1, x0:x1]), VARIANTS[variant])
    truth = np.load(DATA / "variants.npz")[f"{variant}.{window}"]
    assert np.abs(tokens[0, ::4].numpy() - truth).max() <= TOKENS


@pytest.mark.parametrize("window", WINDOWS)
def test_image_views(deep_clip: DenseClip, image: torch.Tensor, window: str) -> None:
    y0, x0, y1, x1 = WINDOWS[window]
    truth = np.load(DATA / "itaclip_views.npz")
    ours = mixed_logits(
        deep_clip.normalise(image[None, y0:y1, x0:x1]),
        lambda images: deep_clip.patch_features(images, VARIANTS["itaclip"]),
        torch.from_numpy(truth["text"]),
    )
    upsampled = F.interpolate(ours, (y1 - y0, x1 - x0), mode="bilinear", align_corners=False)[0].numpy()
    assert np.abs(upsampled[:, ::8, ::8] - truth[window]).max() <= LOGITS


@pytest.mark.parametrize(("iterations", "dilations"), [(1, (1,)), (10, (8, 16)), (3, (2, 5))])
def test_pixel_adaptive_refinement(iterations: int, dilations: tuple[int, ...]) -> None:
    truth = np.load(DATA / "pamr.npz")
    ours = pamr(torch.from_numpy(truth["image"]), torch.from_numpy(truth["scores"]), iterations, dilations)
    assert np.abs(ours.numpy() - truth[f"{iterations}x{'-'.join(map(str, dilations))}"]).max() <= 1e-5


@pytest.mark.parametrize(("denoising", "smoothing"), [(0.0, 1.0), (0.5, 1.0), (0.77, 0.7)])
def test_prompt_denoising_and_key_smoothing(denoising: float, smoothing: float) -> None:
    truth = np.load(DATA / "maskclip_head.npz")
    logits, keys = (torch.from_numpy(truth[name]) for name in ("logits", "keys"))
    if denoising:
        logits = denoise_prompts(logits, denoising)
    ours = smooth_by_keys(logits, keys, smoothing).numpy()
    assert np.abs(ours - truth[f"{denoising}-{smoothing}"]).max() <= 1e-6


def test_cosine_logits_of_one_window(clip: DenseClip, image: torch.Tensor) -> None:
    window, text = np.load(DATA / "single_window.npz"), np.load(DATA / "text.npz")
    y0, x0, y1, x1 = window["window_yxyx"]
    features = clip.patch_features(clip.normalise(image[None, y0:y1, x0:x1]), VARIANTS["csa"])
    cosine = torch.einsum("bhwd,qd->bqhw", features, torch.from_numpy(text["query_features"]))
    assert np.abs(cosine[0].numpy() - window["coslogits_14"]).max() <= LOGITS
    upsampled = F.interpolate(cosine, (224, 224), mode="bilinear", align_corners=False)[0].numpy()
    assert np.abs(upsampled[:, ::4, ::4] - window["logits224.s4"]).max() <= LOGITS
    assert np.abs(upsampled[:, -1] - window["logits224.lastrow"]).max() <= LOGITS
    assert np.abs(upsampled[:, :, -1] - window["logits224.lastcol"]).max() <= LOGITS


@pytest.fixture(scope="module")
def slid(clip: DenseClip, image: torch.Tensor) -> torch.Tensor:
    words = (DATA / "cls_plain.txt").read_text().split()
    boxes = window_boxes(image.shape[0], image.shape[1], 224, 112)
    windows = torch.stack([image[y0:y1, x0:x1] for y0, x0, y1, x1 in boxes])
    features = clip.patch_features(clip.normalise(windows), VARIANTS["csa"])
    cosine = torch.einsum("bhwd,qd->bqhw", features, text_features(clip, words))
    return Stitched(cosine, boxes, (image.shape[0], image.shape[1])).whole()


def test_sliding_logits(slid: torch.Tensor) -> None:
    truth = np.load(DATA / "slide_plain.npz")
    ours = slid.numpy()
    assert np.abs(ours[:, ::12, ::12] - truth["slide_plain.logits.s12"]).max() <= LOGITS
    assert np.abs(ours[:, -1] - truth["slide_plain.logits.lastrow"]).max() <= LOGITS
    assert np.abs(ours[:, :, -1] - truth["slide_plain.logits.lastcol"]).max() <= LOGITS


def test_sliding_probabilities(slid: torch.Tensor) -> None:
    truth = np.load(DATA / "slide_plain.npz")
    ours = class_probabilities(slid, range(len(slid)), len(slid), SCALE).numpy()
    assert np.abs(ours[:, ::8, ::8] - truth["slide_plain.probs.s8"]).max() <= PROBABILITIES
    assert np.abs(ours[:, -1] - truth["slide_plain.probs.lastrow"]).max() <= PROBABILITIES


def test_sliding_segmentation(slid: torch.Tensor) -> None:
    truth = np.load(DATA / "slide_plain.npz")
    words = (DATA / "cls_plain.txt").read_text().split()
    vocabulary = Vocabulary.build([(word, [word], 0.0) for word in words])
    labels = label_map(slid, (slid.shape[1], slid.shape[2]), vocabulary, SCALE, 0.0, 0.0).labels
    seg = truth["slide_plain.seg"]
    near_tie = np.unpackbits(truth["slide_plain.ambiguous"])[: seg.size].reshape(seg.shape).astype(bool)
    assert ((labels != seg) & ~near_tie).sum() <= SEG * seg.size
    assert (labels != seg).mean() <= 0.001


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"csa"}))
def test_a_wrong_variant_stands_far_outside(clip: DenseClip, image: torch.Tensor, variant: str) -> None:
    window = np.load(DATA / "single_window.npz")
    y0, x0, y1, x1 = window["window_yxyx"]
    [tokens] = clip.tokens(clip.normalise(image[None, y0:y1, x0:x1]), VARIANTS[variant])
    assert np.abs(tokens[0].numpy() - window["tokens_csa"]).max() > 100 * TOKENS


# ---- mask tokens and regions


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    packed = np.load(DATA / "mask_tokens.npz")["masks"]
    return torch.from_numpy(np.unpackbits(packed).reshape(-1, 224, 224).astype(bool))


@pytest.mark.parametrize("kind", ["ding", "masq"])
@torch.inference_mode()
def test_mask_tokens(clip: DenseClip, image: torch.Tensor, masks: torch.Tensor, kind: str) -> None:
    """Ding's MaskCLIP without its trained parts, and MasQCLIP with projections in its own checkpoint's layout."""
    tuned = load_tuned(clip.visual, str(DATA / "masqclip_tuned.pth"))
    tokens = MaskTokens(clip.visual) if kind == "ding" else tuned
    touched = touched_patches(masks, (14, 14))[None]
    ours = clip.mask_features(tokens, clip.normalise(image[None, :224, :224]), touched)[0]
    truth = F.normalize(torch.from_numpy(np.load(DATA / "mask_tokens.npz")[kind]), dim=-1)
    assert (ours - truth).abs().max() <= LOGITS


@pytest.mark.parametrize(("window", "grid"), [("square", "same"), ("wide", "fine")])
def test_region_limited_attention(deep_clip: DenseClip, image: torch.Tensor, window: str, grid: str) -> None:
    """CorrCLIP's three branches, its regions merged by scikit-learn's DBSCAN; at CLIP's grid and at a finer one."""
    y0, x0, y1, x1 = WINDOWS[window]
    stored = np.load(DATA / "corrclip.npz")
    features, regions, truth = (
        torch.from_numpy(stored[f"{window}.{grid}.{k}"]) for k in ("features", "regions", "out")
    )
    pixels = deep_clip.normalise(image[None, y0:y1, x0:x1])
    ours = deep_clip.region_features(pixels, features, regions.long())
    assert (ours.flatten(0, 1) - F.normalize(truth, dim=-1)).abs().max() <= LOGITS


# ---- metrics


def test_mean_iou_is_mmsegs() -> None:
    """Its functions sum and divide in float32: 1e-7 is their own rounding."""
    stored = np.load(DATA / "metrics.npz")
    score = SemanticScore(6)
    for prediction, truth in zip(stored["sem.pred"], stored["sem.truth"], strict=True):
        score.add(prediction.astype(np.int64), np.where(truth == 255, -1, truth.astype(np.int64)))
    assert np.nanmax(np.abs(score.class_iou() - stored["sem.iou"])) <= 1e-7
    assert np.array_equal(np.isnan(score.class_iou()), np.isnan(stored["sem.iou"]))
    assert np.nanmax(np.abs(score.class_accuracy() - stored["sem.acc"])) <= 1e-7
    assert abs(score.mean_iou() - stored["sem.miou"]) <= 1e-7 and abs(score.accuracy() - stored["sem.aacc"]) <= 1e-7


def test_panoptic_quality_is_panopticapis() -> None:
    stored = np.load(DATA / "metrics.npz")
    score = PanopticScore(6)
    names = ("found", "found_class", "truth", "truth_class")
    for found, found_class, truth, (truth_class, crowd) in zip(*(stored[f"pan.{n}"] for n in names), strict=True):
        crowds = [int(k) + 1 for k in np.flatnonzero(crowd)]
        score.add(found, found_class.tolist(), truth, truth_class.tolist(), crowds)
    assert np.abs(np.array(score.quality()) - stored["pan.all"]).max() <= 1e-9
    assert np.abs(np.array(score.quality([3, 4, 5])) - stored["pan.things"]).max() <= 1e-9
    assert np.abs(np.nan_to_num(score.class_quality()[:, 0]) - stored["pan.class"]).max() <= 1e-9


def test_fid_is_over_the_features_of_pytorch_fid(
    image: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSEG_CHECKPOINTS", str(tmp_path))
    assert inception_weights() is None
    shapes = {name: value.shape for name, value in Inception.network().state_dict().items()}
    torch.save({name: drawn(name, shape) for name, shape in shapes.items()}, tmp_path / WEIGHTS)
    found = inception_weights()
    assert found == tmp_path / WEIGHTS
    crops = np.stack([image[:224, :224], image[100:324, 200:424]])
    wanted = np.load(DATA / "inception.npz")["features"]
    assert np.abs(Inception(found, torch.device("cpu")).features(crops) - wanted).max() < 1e-4
    assert np.abs(wanted[0] - wanted[1]).max() > 1


def drawn(name: str, shape: torch.Size) -> torch.Tensor:
    """Weights that follow from their name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith(("running_var", "bn.weight")):
        return torch.from_numpy(rng.uniform(0.5, 1.5, shape).astype(np.float32))
    gain = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * np.float32(gain))
