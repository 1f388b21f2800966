"""SCLIP's own numbers on equal weights. A mean instead of a sum, another GELU or another resize stand far outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.methods.labelling import label_map
from ovseg_batch.methods.maskclip import denoise_prompts, smooth_by_keys
from ovseg_batch.methods.pamr import pamr
from ovseg_batch.methods.views import mixed_logits
from ovseg_batch.methods.vocabulary import TEMPLATES, Vocabulary, class_probabilities, query_feature
from ovseg_batch.methods.windows import Stitched, window_boxes
from ovseg_batch.models.clip import DenseClip

DATA = Path(__file__).parent / "data" / "parity"
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
    boxes = window_boxes(*image.shape[:2], 224, 112)
    windows = torch.stack([image[y0:y1, x0:x1] for y0, x0, y1, x1 in boxes])
    features = clip.patch_features(clip.normalise(windows), VARIANTS["csa"])
    cosine = torch.einsum("bhwd,qd->bqhw", features, text_features(clip, words))
    return Stitched(cosine, boxes, tuple(image.shape[:2])).whole()


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
    labels, _ = label_map(slid, tuple(slid.shape[1:]), vocabulary, SCALE, 0.0, 0.0)
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
