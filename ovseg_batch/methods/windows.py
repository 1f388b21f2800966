"""Sizes and positions of sliding windows, as in mmsegmentation and SCLIP.

Sources: `forward_slide` of wangf3014/SCLIP, `rescale_size` of mmcv, and `preprocess_image` of YuHengsss/Trident.
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


def long_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the size of an image whose longer side is resized to `side` pixels, as `ResizeLongestSide` of SAM."""
    scale = side / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def rounded_up(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Return both sides rounded up to multiples."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def spliced_size(height: int, width: int, multiple: int, window: int) -> tuple[int, int]:
    """Return the size at which the windows of an image are cut, as `preprocess_image` of Trident.

    The longer side is rounded up to a multiple, and then the shorter one. No side is smaller than a window.
    """
    if height % multiple == 0 and width % multiple == 0:
        return max(height, window), max(width, window)
    longer = max(height, width)
    target = -(-longer // multiple) * multiple
    h, w = rounded_up(int(height * target / longer), int(width * target / longer), multiple)
    return max(h, window), max(w, window)
