"""Sliding windows as mmseg and SCLIP cut them.

Source: SCLIP's `forward_slide` and mmcv's `rescale_size`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
