"""OWLv2: boxes of objects, and scores of any words for them. transformers builds the model.

Boxes, objectness and class embeddings come from the image alone. The score of a word for a box is the sigmoid of a
logit that follows from the box's embedding and the word's, so no word has an effect on another. The image encoder
computes in the chosen precision, the heads and the text tower in fp32: half precision would move boxes by pixels.
Source: Minderer et al., Scaling Open-Vocabulary Object Detection, NeurIPS 2023. The results are tested against
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ovseg_batch.methods.square_resize import square_resized
from ovseg_batch.models import presets, zoo
from ovseg_batch.models.clip_tokens import token_ids
from ovseg_batch.models.device import autocast, lower
from ovseg_batch.models.weights import load_weights, own_weights, random_or_empty, read_state_dict
from ovseg_batch.types.arrays import Floats, Pixels

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EPS = 1e-6  # added to the norms of embeddings


@dataclass(frozen=True, slots=True)
class Detections:
    """The P boxes of an image without classes, one for each patch of the padded square.

    Attributes:
        boxes: (P, 4) float32 x0, y0, x1, y1 in pixels of the image, clipped to it.
        objectness: (P,) float32 in [0, 1].
        embeddings: (P, D) float32, L2-normalised.
        calibration: (P, 2) float32 shift and scale of the logits of each box.
    """

    boxes: Tensor
    objectness: Tensor
    embeddings: Tensor
    calibration: Tensor


class Owl:
    """The image side of an OWLv2 on a device.

    Args:
        model: an `Owlv2ForObjectDetection` of transformers. Its text tower is removed.
        device, precision: device of the model, and precision of its image encoder.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        self.model = cast(Any, model.float().eval())
        self.model.owlv2.text_model = None
        own_weights(self.model).to(device)
        lower(self.model.owlv2.vision_model, precision)
        self._device, self._precision = device, precision
        self._mean, self._std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))

    @classmethod
    def load(cls, spec: zoo.ModelSpec, device: torch.device, precision: str) -> Owl:
        """Load a model. All weights must match. Format: the files that transformers writes.

        Raises:
            OvsegError: the weights do not fit the architecture, or the file cannot be trusted or read.
        """
        owl = cls(load_model(spec), device, precision)
        if device.type == "cuda":  # a faulty device fails before the first shard
            owl.detect(np.full((owl.image_size, owl.image_size, 3), 127, np.uint8))
        return owl

    @property
    def image_size(self) -> int:
        """The side in pixels of the square that the model sees."""
        return int(self.model.config.vision_config.image_size)

    @torch.inference_mode()
    def preprocess(self, image: Pixels) -> Tensor:
        """Pad (H, W, 3) uint8 RGB to a square and resize it, as `Owlv2ImageProcessor` does: (3, s, s) float32."""
        return (square_resized(image, self.image_size, self._device) - self._mean) / self._std

    @torch.inference_mode()
    def forward_bare(self, pixels: Tensor) -> Tensor:
        """Run the image encoder on (1, 3, s, s). Return the features of the patches: (1, h, w, C) float32."""
        with autocast(self._device, self._precision):
            features: Tensor = self.model.image_embedder(pixels)[0]
        return features.float()

    @torch.inference_mode()
    def detect(self, image: Pixels) -> Detections:
        """Return the boxes of an image (H, W, 3) uint8 RGB of any size, on the device."""
        grid = self.forward_bare(self.preprocess(image)[None])
        features = grid.flatten(1, 2)
        height, width = image.shape[:2]
        centre, extent = self.model.box_predictor(features, grid)[0].split(2, dim=-1)
        corners = torch.cat([centre - extent / 2, centre + extent / 2], dim=-1) * max(height, width)
        limits = torch.tensor([width, height, width, height], dtype=torch.float32, device=self._device)
        head = self.model.class_head
        calibration = torch.cat([head.logit_shift(features), head.elu(head.logit_scale(features)) + 1], dim=-1)
        return Detections(
            torch.minimum(corners.clamp(min=0), limits),
            self.model.objectness_predictor(features)[0].sigmoid(),
            _normalised(head.dense0(features))[0],
            calibration[0],
        )


class OwlText:
    """The text tower of an OWLv2, on the CPU in fp32.

    Args:
        model: an `Owlv2ForObjectDetection` of transformers. Only its text tower is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        owl = cast(Any, model.float().eval()).owlv2
        self._tower, self._projection = own_weights(owl.text_model), own_weights(owl.text_projection)
        self._length = int(self._tower.config.max_position_embeddings)

    @classmethod
    def load(cls, spec: zoo.ModelSpec) -> OwlText:
        """Load the text tower of a model. Raises as `Owl.load`."""
        return cls(load_model(spec))

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Floats:
        """Return (N, D) float32, L2-normalised. Each prompt is computed alone, so others do not change its last bits.

        Raises:
            ValueError: a prompt has more tokens than the tower takes.
        """
        found = [self._encode(prompt) for prompt in prompts]
        return torch.cat(found).numpy() if found else np.zeros((0, self._projection.out_features), np.float32)

    def _encode(self, prompt: str) -> Tensor:
        known = token_ids(prompt)
        padding = self._length - len(known)
        if padding < 0:
            raise ValueError(f"the prompt {prompt!r} has {len(known)} tokens, and OWLv2 takes {self._length}")
        ids, mask = torch.tensor([known + [0] * padding]), torch.tensor([[1] * len(known) + [0] * padding])
        projected: Tensor = self._projection(self._tower(input_ids=ids, attention_mask=mask).pooler_output)
        norm: Tensor = torch.linalg.norm(projected, ord=2, dim=-1, keepdim=True)
        return projected / norm


def _normalised(embeddings: Tensor) -> Tensor:
    """Normalise embeddings (…, D) as the class head does."""
    norm: Tensor = torch.linalg.norm(embeddings, dim=-1, keepdim=True)
    return embeddings / (norm + EPS)


def load_model(spec: zoo.ModelSpec) -> nn.Module:
    """Return an `Owlv2ForObjectDetection` with its weights, on the CPU. Raises as `Owl.load`."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection  # takes seconds

    if spec.architecture.startswith(zoo.FOLDER):
        config = Owlv2Config.from_pretrained(spec.architecture.removeprefix(zoo.FOLDER), local_files_only=True)
    else:
        config = Owlv2Config(**presets.OWL_CONFIGS[spec.architecture])
    model: Any = random_or_empty(lambda: Owlv2ForObjectDetection(config), spec.seed)
    if spec.seed is not None:
        return cast(nn.Module, model)
    computed = {name for name, _ in model.named_buffers()}  # older files hold them too
    state = {name: value for name, value in read_state_dict(spec.weights).items() if name not in computed}
    load_weights(model, state, spec.weights, f"the OWLv2 {spec.name}", assign=True)
    model.box_bias = model.compute_box_bias(model.num_patches_height, model.num_patches_width)
    for tower in (model.owlv2.text_model, model.owlv2.vision_model):
        positions = tower.embeddings.position_ids
        tower.embeddings.position_ids = torch.arange(positions.shape[-1]).expand(positions.shape)
    loaded: nn.Module = model
    return loaded
