"""Load a model, run it once, and describe it: a check before a long run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ovseg_batch.errors import OvsegError
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.methods.matte_tiles import UNKNOWN
from ovseg_batch.models import zoo
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.dino import Dino
from ovseg_batch.models.encoders import load_encoder
from ovseg_batch.models.owl import Owl
from ovseg_batch.models.precision import precision
from ovseg_batch.models.presets import Kind
from ovseg_batch.models.sam import Sam
from ovseg_batch.models.sam3 import Sam3
from ovseg_batch.models.vitmatte import VitMatte
from ovseg_batch.types.arrays import Pixels

WORD = "object"  # what SAM 3 searches the image for


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a model for one image.

    Attributes:
        model: its module.
        output: values that must be finite.
        facts: what the answer says of the model, in display order.
    """

    model: nn.Module
    output: Tensor
    facts: dict[str, str] = field(default_factory=dict)


Model = Callable[[Pixels], Answer]


def _clip(spec: zoo.ModelSpec, device: torch.device, kind: str) -> Model:
    encoder = load_encoder(spec, device, kind)
    variant = VARIANTS["vanilla" if spec.is_tipsv2 else "csa"]

    def answer(image: Pixels) -> Answer:
        output = encoder.patch_features(encoder.normalise(torch.from_numpy(image)[None].to(device)), variant)
        patches = f"{output.shape[1]} × {output.shape[2]} of {spec.window} pixels, {output.shape[3]} features"
        return Answer(encoder.model, output, {"activation": encoder.activation, "patches": patches})

    return answer


def _sam(spec: zoo.ModelSpec, device: torch.device, kind: str) -> Model:
    sam = Sam.load(spec, device, kind)

    def answer(image: Pixels) -> Answer:
        [embedding] = sam.embed([image])
        output, _ = sam.predict(embedding, np.array([[spec.window / 2, spec.window / 2]]))
        masks = f"{output.shape[1]} of {output.shape[2]} × {output.shape[3]} a point"
        return Answer(sam.model, output, {"masks": masks})

    return answer


def _dino(spec: zoo.ModelSpec, device: torch.device, kind: str) -> Model:
    dino = Dino.load(spec, device, kind)

    def answer(image: Pixels) -> Answer:
        output = dino.features(dino.normalise(torch.from_numpy(image)[None].to(device)))
        return Answer(dino.model, output, {"features": " × ".join(map(str, output.shape[1:]))})

    return answer


def _owl(spec: zoo.ModelSpec, device: torch.device, kind: str) -> Model:
    owl = Owl.load(spec, device, kind)

    def answer(image: Pixels) -> Answer:
        found = owl.detect(image)
        return Answer(owl.model, found.boxes, {"boxes": str(len(found.boxes))})

    return answer


def _sam3(spec: zoo.ModelSpec, device: torch.device, kind: str) -> Model:
    sam3 = Sam3.load(spec, device, kind, words=1)
    words = sam3.encode_words([WORD])

    def answer(image: Pixels) -> Answer:
        [found] = sam3.answer(sam3.see(image), words, 0.0, lambda _, one: one)
        masks = f"{len(found.masks)} of {found.masks.shape[1]} × {found.masks.shape[2]} a word"
        return Answer(sam3.model, found.masks, {"prompts": f"at most {spec.context} tokens", "masks": masks})

    return answer


def _matte(spec: zoo.ModelSpec, device: torch.device, kind: str) -> Model:
    matte = VitMatte.load(spec, device, kind)

    def answer(image: Pixels) -> Answer:
        alpha = matte.alpha(image, np.full(image.shape[:2], UNKNOWN, np.uint8))
        return Answer(matte.model, torch.from_numpy(alpha), {"alpha": f"{alpha.shape[0]} × {alpha.shape[1]}"})

    return answer


CHECKS: dict[Kind, Callable[[zoo.ModelSpec, torch.device, str], Model]] = {
    "clip": _clip,
    "sam": _sam,
    "dino": _dino,
    "owl": _owl,
    "sam3": _sam3,
    "matte": _matte,
}


def check_model(spec: zoo.ModelSpec, device: str = "auto") -> dict[str, str]:
    """Load the model and run it on one grey image.

    Returns:
        Name → value of each fact, in display order.

    Raises:
        OvsegError: the model does not load, or its output is not finite.
    """
    target = resolve_device(device)
    kind = precision("auto", device, not spec.embedded)
    size = "blake2b" if spec.seed is None else "seed"
    facts = {"architecture": spec.architecture, "weights": spec.weights, size: spec.weights_hash()}
    model = CHECKS[spec.kind](spec, target, kind)
    started = time.monotonic()
    answer = model(np.full((spec.window, spec.window, 3), 127, np.uint8))
    seconds = time.monotonic() - started
    if not bool(torch.isfinite(answer.output).all()):
        raise OvsegError(f"The model {spec.name!r} returns values that are not finite; its weights are damaged.")
    facts["parameters"] = f"{sum(p.numel() for p in answer.model.parameters()):,}"
    return {
        **facts,
        **answer.facts,
        "runs on": f"{target} in {kind}, {seconds:.2f} s an image",
        "licence": spec.licence,
    }
