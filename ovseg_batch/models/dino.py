"""DINO: patch features whose similarities are used in place of CLIP's own. timm builds the ViT.

Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg_batch.models import zoo
from ovseg_batch.models.device import autocast, lower
from ovseg_batch.models.vit import resized_position
from ovseg_batch.models.weights import load_weights, read_state_dict

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Dino:
    """A DINO ViT on a device.

    Args:
        model: a `VisionTransformer` of timm without a head.
        device, precision: device and precision of the model. Returned features are float32.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        self.model = cast(Any, model.float().eval().to(device))
        lower(self.model, precision)
        self._device, self._precision = device, precision
        self._mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(STD, device=device).view(3, 1, 1)

    @classmethod
    def load(cls, spec: zoo.ModelSpec, device: torch.device, precision: str) -> Dino:
        """Load a model. All weights must match. Formats: Meta's .pth files, or safetensors.

        Raises:
            OvsegError: the weights do not fit the architecture, or the file cannot be trusted or read.
        """
        import timm  # its import takes a quarter of a second, and few runs use DINO

        if spec.seed is not None:
            torch.manual_seed(spec.seed)
        model = timm.create_model(spec.architecture, pretrained=False, num_classes=0)
        if spec.seed is None:
            state = read_state_dict(spec.weights)
            load_weights(model, state, spec.weights, f"the architecture {spec.architecture}")
        return cls(model, device, precision)

    @property
    def patch(self) -> int:
        """The side of a patch in pixels."""
        return int(max(self.model.patch_embed.patch_size))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images (B, H, W, 3) uint8 RGB on the device to (B, 3, H, W) float32, as DINO was trained."""
        return (images.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Return the output of the last block after the norm.

        Args:
            images: (B, 3, H, W) of `normalise`; sides that are not multiples of the patch are cropped.

        Returns:
            (B, H // patch, W // patch, C) float32.
        """
        with autocast(self._device, self._precision):
            x = self.model.norm(self.model.blocks[-1](self._below(images)))
        return self._gridded(x, images)

    @torch.inference_mode()
    def query_key(self, images: Tensor) -> Tensor:
        """Return the sum of the queries and keys of the last block, L2-normalised.

        Args: as for `features`.

        Returns:
            (B, H // patch, W // patch, C) float32.
        """
        last = self.model.blocks[-1]
        with autocast(self._device, self._precision):
            query, key, _ = last.attn.qkv(last.norm1(self._below(images))).chunk(3, dim=-1)
        return F.normalize(self._gridded(query + key, images), dim=-1)

    def _below(self, images: Tensor) -> Tensor:
        """Return the input of the last block: (B, 1 + patches, C)."""
        model = self.model
        x = model.patch_embed.proj(images)
        grid = tuple(x.shape[-2:])
        position = resized_position(model.pos_embed[0], model.patch_embed.grid_size, grid)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + position
        for block in model.blocks[:-1]:
            x = block(x)
        below: Tensor = x
        return below

    def _gridded(self, tokens: Tensor, images: Tensor) -> Tensor:
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        return tokens[:, 1:].float().reshape(len(tokens), *grid, -1)
