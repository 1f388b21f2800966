"""ViTMatte: alpha of the unknown part of a trimap. transformers builds the model.

The backbone computes in the chosen precision, the convolutions that return alpha in fp32, because bf16 has 128 levels
between 0.5 and 1. Source: Yao et al., ViTMatte: Boosting Image Matting with Pretrained Plain Vision Transformers,
2023. The results are tested against transformers.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ovseg_batch.methods.matte_tiles import UNKNOWN
from ovseg_batch.models import zoo
from ovseg_batch.models.device import autocast, lower
from ovseg_batch.models.vitmatte_layout import vitmatte_layout
from ovseg_batch.models.weights import load_weights, random_or_empty, read_state_dict
from ovseg_batch.types.arrays import Numbers, Pixels

HALF_RANGE = 127.5  # mean and deviation of the pixels, in steps of 1/255
PADDING = 32  # sides of the input are multiples of this


class VitMatte:
    """A ViTMatte on a device.

    Args:
        model: a `VitMatteForImageMatting` of transformers.
        device, precision: device of the model, and precision of its backbone.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        self.model = cast(Any, model.float().eval().to(device))
        lower(self.model.backbone, precision)
        self._device, self._precision = device, precision

    @classmethod
    def load(cls, spec: zoo.ModelSpec, device: torch.device, precision: str) -> VitMatte:
        """Load a model. All weights must match. Format: the files that transformers writes.

        Raises:
            OvsegError: the weights do not fit the architecture, or the file cannot be trusted or read.
        """
        matte = cls(load_model(spec), device, precision)
        if device.type == "cuda":  # a faulty device fails before the first shard
            side = 16 * PADDING
            matte.alpha(np.full((side, side, 3), 127, np.uint8), np.full((side, side), UNKNOWN, np.uint8))
        return matte

    @torch.inference_mode()
    def alpha(self, image: Pixels, trimap: Pixels) -> Numbers:
        """Compute alpha.

        Args:
            image: (H, W, 3) uint8 RGB.
            trimap: (H, W) uint8: 255 inside, 0 outside, 128 unknown.

        Returns:
            (H, W) float32 in [0, 1], of every pixel.
        """
        pixels = self.preprocess(image, trimap)[None]
        with autocast(self._device, self._precision):
            features: Tensor = self.model.backbone.forward_with_filtered_kwargs(pixels).feature_maps[-1]
        alphas: Tensor = self.model.decoder(features.float(), pixels)
        height, width = trimap.shape
        return np.asarray(alphas[0, 0, :height, :width].cpu().numpy())

    def preprocess(self, image: Pixels, trimap: Pixels) -> Tensor:
        """Return the input of the model as `VitMatteImageProcessor` does: (4, h, w) float32, padded with zeros."""
        height, width = trimap.shape
        colours = (torch.from_numpy(image).to(self._device).permute(2, 0, 1).float() - HALF_RANGE) / HALF_RANGE
        known = torch.from_numpy(trimap).to(self._device)[None].float() / 255
        padding = (0, -width % PADDING, 0, -height % PADDING)
        return nn.functional.pad(torch.cat([colours, known]), padding)


def load_model(spec: zoo.ModelSpec) -> nn.Module:
    """Return a `VitMatteForImageMatting` with its weights, on the CPU. Raises as `VitMatte.load`."""
    from transformers import VitMatteConfig, VitMatteForImageMatting  # takes seconds

    config = VitMatteConfig.from_dict(vitmatte_layout(spec.architecture).config)
    model: nn.Module = random_or_empty(lambda: VitMatteForImageMatting(config), spec.seed)
    if spec.seed is not None:
        return model
    load_weights(model, read_state_dict(spec.weights), spec.weights, f"the ViTMatte {spec.name}", assign=True)
    return model
