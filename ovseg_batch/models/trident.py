"""Trident's image features: CLIP's windows correlated by DINO, spliced, and aggregated by SAM over the whole image.

Source: Shi et al., Harnessing Vision Foundation Models for High-Performance, Training-Free Open Vocabulary Segmentation
(Trident), ICCV 2025; code: `get_trident_seg` in trident.py of YuHengsss/Trident. The features are tested against it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.methods.splicing import (
    correlation,
    global_attention,
    mean_similarity,
    splice,
)
from ovseg_batch.methods.windows import spliced_size, window_boxes
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.dino import Dino
from ovseg_batch.models.sam1 import Sam1, enlarged
from ovseg_batch.types.arrays import Pixels


@dataclass(frozen=True, slots=True)
class Trident:
    """The three models and the parameters of the aggregation.

    Attributes:
        window, stride: side and distance of the windows in pixels, rounded down to patches of CLIP.
        cosine, raise_negative: `factor` and `raise_negative` of `global_attention`.
        halves: whether SAM sees the left and the right half of an image, as Cityscapes in the published code.
        batch: windows per pass of CLIP and DINO.
    """

    clip: DenseClip
    dino: Dino
    sam: Sam1
    window: int
    stride: int
    cosine: float
    raise_negative: bool
    halves: bool
    batch: BatchSize

    @torch.inference_mode()
    def features(self, image: Pixels, small: Pixels) -> Tensor:
        """Return the features of an image at the patches of SAM.

        Args:
            image: (H, W, 3) uint8 RGB at its original size, which SAM sees.
            small: the same image at the size that CLIP and DINO see.

        Returns:
            (h, w, D) float32, L2-normalised; h and w of `LastAttention.grid`, and twice w for halves.
        """
        spliced, given = self._spliced(small), enlarged(image, self.clip.patch)
        parts, count = [], 2 if self.halves else 1
        for seen, values in zip(np.split(given, count, axis=1), _columns(spliced, count), strict=True):
            parts.append(self._aggregated(seen, values))
        tokens = torch.cat(parts, dim=1)
        found: Tensor = self.clip.projected(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return found

    def _aggregated(self, image: Pixels, values: Tensor) -> Tensor:
        """Return the mean of values (C, h', w') under SAM's attention of an image, at SAM's patches: (h, w, C)."""
        last = self.sam.last_attention(np.ascontiguousarray(image))
        values = F.interpolate(values[None], last.grid, mode="bilinear", align_corners=False)[0].flatten(1).T
        weights = global_attention(last.heads, last.values, self.cosine, self.raise_negative)
        found: Tensor = (weights @ values).unflatten(0, last.grid)
        return found

    def _spliced(self, small: Pixels) -> Tensor:
        """Return the values of CLIP's last block over the whole image: (C, h, w) float32."""
        patch = self.clip.patch
        window, stride = (max(1, side // patch) * patch for side in (self.window, self.stride))
        size = spliced_size(small.shape[0], small.shape[1], patch, window)
        boxes = window_boxes(*size, window, stride)
        pixels = torch.from_numpy(small)[None].to(self.clip.device)
        clip, dino = (_windows(model.normalise(pixels), size, boxes.tolist()) for model in (self.clip, self.dino))

        def correlate(part: slice) -> Tensor:
            return F.normalize(self.dino.features(dino[part]), dim=-1)

        features = torch.cat(self.batch.run(len(boxes), correlate))
        mean = mean_similarity(features.flatten(1, 2))

        def value(part: slice) -> Tensor:
            seen = features[part]
            grid = (seen.shape[1], seen.shape[2])
            found = self.clip.correlated_values(clip[part], correlation(seen.flatten(1, 2), mean), grid)
            ratio = max(1, round(grid[0] * patch / window))
            cells = (window // patch * ratio, window // patch * ratio)
            return F.interpolate(found, cells, mode="bilinear", align_corners=False) if grid != cells else found

        values = torch.cat(self.batch.run(len(boxes), value))
        ratio = values.shape[-1] * patch // window
        return splice(values, boxes // patch * ratio, (size[0] // patch * ratio, size[1] // patch * ratio))


def _windows(pixels: Tensor, size: tuple[int, int], boxes: list[list[int]]) -> Tensor:
    """Resize (1, 3, H, W) bilinearly and cut the windows: (N, 3, window, window)."""
    if tuple(pixels.shape[-2:]) != size:
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    return torch.cat([pixels[:, :, y0:y1, x0:x1] for y0, x0, y1, x1 in boxes])


def _columns(values: Tensor, count: int) -> list[Tensor]:
    """Return values (C, h, w) in one part, or in the left and the right half."""
    middle = values.shape[2] // 2
    return [values] if count == 1 else [values[:, :, :middle], values[:, :, middle:]]
