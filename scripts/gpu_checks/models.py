"""ViT-B/16 and SAM 2.1 large with random weights: features, mask logits and predicted IoU of the GPU against CPU fp32.

Limits. In fp32 (no TF32) only the order of sums differs. A half precision rounds every product to 8 (bf16) or 11 bits,
and the errors of all blocks add up. For the same models and images a CPU in bf16 showed a mean cosine of 0.99996, a
correlation of 0.99997, 0.997 equal signs and a difference of 0.002 in predicted IoU; `HALF` allows several times as
much. An error in a kernel or in a memory layout changes these figures by far more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_checks.configurations import FULL_CLIP, FULL_SAM, RANDOM
from gpu_checks.records import Options, Report
from ovseg_batch import scenes
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.methods.proposals import point_grid
from ovseg_batch.models import zoo
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import prepare
from ovseg_batch.models.precision import precision
from ovseg_batch.models.sam import Sam

Array = np.ndarray[Any, Any]

WINDOWS = 4
POINTS_PER_SIDE = 4
PROMPTS = ["a photo of a cat.", "a photo of the sky.", "a drawing of a house.", "grass"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a precision must reach: mean cosine of features, correlation and sign agreement of mask logits, and the
    largest difference of a predicted IoU."""

    cosine: float
    correlation: float
    signs: float
    predicted_iou: float


FP32 = Limits(0.9999, 0.9999, 0.999, 0.001)
HALF = Limits(0.999, 0.999, 0.98, 0.02)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model pair computes.

    Attributes:
        features: (windows, gh, gw, D) patch features.
        text: (prompts, D) text features.
        logits: (points, 3, s / 4, s / 4) mask logits.
        predicted_iou: (points, 3).
    """

    features: Tensor
    text: Tensor
    logits: Tensor
    predicted_iou: Tensor


def run(report: Report, options: Options) -> None:
    """Compare fp32 and the default precision of full-size models with CPU fp32."""
    if options.quick:
        clip, sam = zoo.resolve("clip", "demo"), zoo.resolve("sam", "demo")
    else:
        clip, sam = zoo.resolve("clip", FULL_CLIP, RANDOM), zoo.resolve("sam", FULL_SAM, RANDOM)
    prepare(options.device)
    reference = compute(clip, sam, "cpu", "fp32")
    half = precision("auto", options.device, large=True)
    for kind, limits in {"fp32": FP32, half: HALF}.items():
        with report.guarded(f"models in {kind}"):
            compare(report, kind, limits, reference, compute(clip, sam, options.device, kind))


def compute(clip_spec: zoo.ModelSpec, sam_spec: zoo.ModelSpec, device: str, kind: str) -> Outputs:
    """Load both models on a device and compute them on rendered scenes; the results lie on the CPU."""
    target = torch.device(device)
    pictures = [scenes.render(seed).image for seed in scenes.HELD_OUT_SEEDS[8000 : 8000 + WINDOWS]]
    clip = DenseClip.load(clip_spec, target, kind)
    side = clip.image_size
    windows = torch.from_numpy(np.stack([cv2.resize(picture, (side, side)) for picture in pictures]))
    features = clip.patch_features(clip.normalise(windows.to(target)), VARIANTS["csa"]).cpu()
    text = clip.encode_text(PROMPTS)
    del clip
    sam = Sam.load(sam_spec, target, kind)
    [embedding] = sam.embed(pictures[:1])
    logits, predicted_iou = sam.predict(embedding, point_grid(POINTS_PER_SIDE, embedding.size))
    return Outputs(features, text, logits.cpu(), predicted_iou.cpu())


def compare(report: Report, kind: str, limits: Limits, wanted: Outputs, found: Outputs) -> None:
    """Check the outputs of a precision."""
    cosines = F.cosine_similarity(wanted.features, found.features, dim=-1)
    report.at_least(f"CLIP features, {kind}: mean cosine", float(cosines.mean()), limits.cosine)
    report.measured(f"CLIP features, {kind}: smallest cosine", f"{float(cosines.min()):.5f}")
    words = F.cosine_similarity(wanted.text, found.text, dim=-1)
    report.at_least(f"CLIP text, {kind}: smallest cosine", float(words.min()), FP32.cosine)  # always fp32
    correlation = torch.corrcoef(torch.stack([wanted.logits.flatten(), found.logits.flatten()]))[0, 1]
    report.at_least(f"SAM2 mask logits, {kind}: correlation", float(correlation), limits.correlation)
    signs = ((wanted.logits > 0) == (found.logits > 0)).float().mean()
    report.at_least(f"SAM2 mask logits, {kind}: same sign", float(signs), limits.signs)
    difference = (wanted.predicted_iou - found.predicted_iou).abs().max()
    report.at_most(f"SAM2 predicted IoU, {kind}: largest difference", float(difference), limits.predicted_iou)
