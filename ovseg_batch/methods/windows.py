"""Sizes and positions of sliding windows, as in mmsegmentation and SCLIP.

Source: `forward_slide` of wangf3014/SCLIP and `rescale_size` of mmcv.
"""

from __future__ import annotations

import numpy as np

from ovseg_batch.types.arrays import Indices


def resized_size(height: int, width: int, short_side: int | None, long_side: int, least: int = 1) -> tuple[int, int]:
    """Return the size to which an image is resized for CLIP, with the same aspect ratio.

    Args:
        height, width: size of the original in pixels.
        short_side: target length of the shorter side in pixels. None: the original length.
        long_side: upper limit of the longer side in pixels; 2048 in SCLIP's configurations.
        least: lower limit of both sides in pixels: the size of a patch, because a narrower image would have no patch.

    Returns:
        height, width in pixels.
    """
    wanted = 1.0 if short_side is None else short_side / min(height, width)
    scale = min(wanted, long_side / max(height, width))
    return max(least, int(height * scale + 0.5)), max(least, int(width * scale + 0.5))


def window_boxes(height: int, width: int, window: int, stride: int) -> Indices:
    """Return windows in raster order. The last of a row or column is shifted inside. A smaller image is one window.

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
