"""Sliding windows as mmseg and SCLIP cut them, and the mean of what the windows say.

Source: SCLIP's `forward_slide` and mmcv's `rescale_size`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def resized_size(height: int, width: int, short_side: int | None, long_side: int, least: int = 1) -> tuple[int, int]:
    """The size at which CLIP sees an image, keeping its proportions.

    Args:
        height, width: of the original, pixels.
        short_side: target for the shorter side; None: as it is.
        long_side: the longer side stays at or under it in any case; SCLIP's test pipelines say 2048.
        least: no side becomes shorter; a patch, for an image narrower than one has none.

    Returns:
        height, width in pixels.
    """
    wanted = 1.0 if short_side is None else short_side / min(height, width)
    scale = min(wanted, long_side / max(height, width))
    return max(least, int(height * scale + 0.5)), max(least, int(width * scale + 0.5))


def window_boxes(height: int, width: int, window: int, stride: int) -> Array:
    """Windows in row order; the last of a row or column is shifted back inside. A smaller image is one window.

    Returns:
        (N, 4) int64: y0, x0, y1, x1 in pixels.
    """
    rows = max(height - window + stride - 1, 0) // stride + 1
    columns = max(width - window + stride - 1, 0) // stride + 1
    boxes = []
    for r in range(rows):
        for c in range(columns):
            y1, x1 = min(r * stride + window, height), min(c * stride + window, width)
            boxes.append((max(y1 - window, 0), max(x1 - window, 0), y1, x1))
    return np.array(boxes, np.int64)


@dataclass(frozen=True, slots=True)
class Stitched:
    """The mean over windows of their bilinearly upsampled logits (align_corners=False), made when rows are asked for.

    `logits` are (N, Q, gh, gw) per window, of any float type; `boxes` (N, 4) as `window_boxes` gives them; `size` is
    (h, w) of the image that was cut.
    """

    logits: Tensor
    boxes: Array
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Q, h, w)."""
        return self.logits.shape[1], *self.size

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def rows(self, top: int, bottom: int) -> Tensor:
        """(Q, bottom - top, w) float32."""
        height, width = (int(v) for v in self.boxes[0, 2:] - self.boxes[0, :2])  # all windows are of one size
        down = _bilinear(self.logits.shape[2], height, self.device)
        across = _bilinear(self.logits.shape[3], width, self.device).T
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
        """(Q, h, w) float32."""
        return self.rows(0, self.size[0])


def bilinear_taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper source index and the upper one's weight for each target index (align_corners=False)."""
    position = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * (source / target) - 0.5
    position = position.clamp(min=0)
    lower = position.floor().long().clamp(max=source - 1)
    return lower, (lower + 1).clamp(max=source - 1), position - lower


def _bilinear(source: int, target: int, device: torch.device) -> Tensor:
    """(target, source) matrix that resizes bilinearly: two small products are far faster than `interpolate`."""
    lower, upper, weight = bilinear_taps(source, target, device)
    matrix = torch.zeros(target, source, device=device)
    index = torch.arange(target, device=device)
    matrix[index, lower] += 1 - weight
    matrix[index, upper] += weight
    return matrix
