"""The interface of the models that compare patches with words, and the function that loads one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ovseg_batch.errors import UsageError
from ovseg_batch.methods.attention import Variant
from ovseg_batch.models import zoo
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.tipsv2 import Tipsv2


class Encoder(Protocol):
    """An image tower whose patches can be compared with the words of a text tower.

    Attributes:
        model: the module with the parameters of both towers.
        tokenizer_id: name of the tokenizer in cache keys.
        activation: name of the activation in the image tower's MLPs.
    """

    model: Any
    tokenizer_id: str
    activation: str

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        ...

    @property
    def patch(self) -> int:
        """The side of a patch in pixels."""
        ...

    @property
    def image_size(self) -> int:
        """The side of the training images in pixels."""
        ...

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Return text features (P, D) float32 on the CPU, L2-normalised."""
        ...

    def normalise(self, images: Tensor) -> Tensor:
        """Convert images (B, H, W, 3) uint8 RGB on the device to the input (B, 3, H, W) float32 of the image tower."""
        ...

    def patch_features(self, images: Tensor, variant: Variant, layers: Sequence[float] = (1.0,)) -> Tensor:
        """Return the patch features (B, H // patch, W // patch, D) float32 of a batch of `normalise`, L2-normalised."""
        ...


def load_encoder(spec: zoo.ModelSpec, device: torch.device, precision: str) -> Encoder:
    """Load the CLIP or the TIPSv2 of a spec. Raises as `DenseClip.load`."""
    kind: type[DenseClip] | type[Tipsv2] = Tipsv2 if spec.is_tipsv2 else DenseClip
    return kind.load(spec, device, precision)


def blocks_of(encoder: Encoder) -> DenseClip:
    """Return an encoder whose blocks can be computed one by one: a CLIP. Raises UsageError for another."""
    if not isinstance(encoder, DenseClip):
        raise UsageError("These settings compute with the blocks of a CLIP, and clip.model is none.")
    return encoder
