"""Average the upsampled logits of overlapping windows.

Source: `forward_slide` of wangf3014/SCLIP.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ovseg_batch.types.arrays import Indices


@dataclass(frozen=True, slots=True)
class Stitched:
    """The mean of bilinearly upsampled window logits (align_corners=False). Rows are computed when they are read.

    Attributes:
        logits: (N, Q, gh, gw), any float dtype, one map per window.
        boxes: (N, 4) of `window_boxes`.
        size: (h, w) of the image in pixels.
    """

    logits: Tensor
    boxes: Indices
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Q, h, w)."""
        return self.logits.shape[1], *self.size

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return the rows from `top` to `bottom`: (Q, bottom - top, w) float32."""
        height, width = (int(v) for v in self.boxes[0, 2:] - self.boxes[0, :2])  # all windows have the same size
        down = bilinear_matrix(self.logits.shape[2], height, self.device)
        across = bilinear_matrix(self.logits.shape[3], width, self.device).T
        inside = np.flatnonzero((self.boxes[:, 0] < bottom) & (self.boxes[:, 2] > top))
        total = torch.zeros(self.logits.shape[1], bottom - top, self.size[1], device=self.device)
        count = torch.zeros(bottom - top, self.size[1], device=self.device)
        wide = self.logits[inside].float() @ across
        for part, (y0, x0, y1, x1) in zip(wide, self.boxes[inside].tolist(), strict=True):
            first, last = max(y0, top), min(y1, bottom)
            total[:, first - top : last - top, x0:x1] += down[first - y0 : last - y0] @ part
            count[first - top : last - top, x0:x1] += 1
        return total.div_(count)

    def whole(self) -> Tensor:
        """Return all rows: (Q, h, w) float32."""
        return self.rows(0, self.size[0])


@functools.lru_cache(maxsize=16)  # all masks of an image have the same
def bilinear_taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return lower and upper source index per target index, and the upper one's weight (align_corners=False)."""
    position = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * (source / target) - 0.5
    position = position.clamp(min=0)
    lower = position.floor().long().clamp(max=source - 1)
    return lower, (lower + 1).clamp(max=source - 1), position - lower


def bilinear_matrix(source: int, target: int, device: torch.device) -> Tensor:
    """Return the (target, source) matrix of a bilinear resize. Two products are much faster than `interpolate`."""
    lower, upper, weight = bilinear_taps(source, target, device)
    matrix = torch.zeros(target, source, device=device)
    index = torch.arange(target, device=device)
    matrix[index, lower] += 1 - weight
    matrix[index, upper] += weight
    return matrix
