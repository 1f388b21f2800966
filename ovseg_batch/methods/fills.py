"""Fills of a region that need no generative model."""

from __future__ import annotations

import cv2
import numpy as np

from ovseg_batch.methods.blending import affordable
from ovseg_batch.types.arrays import AnyArray, DeepPixels, Mask, Pixels

Colour = tuple[int, int, int]
# longest side in pixels for inpainting; larger images are inpainted at this size, and the fill is enlarged
LARGEST = 1024
TELEA_RADIUS = 5


def plain(shape: tuple[int, ...], colour: Colour, dtype: np.dtype[np.uint8 | np.uint16]) -> DeepPixels:
    """Return an image (h, w, 3) of one colour. `colour` has 8 bits a channel."""
    return np.broadcast_to(_deep(np.array(colour), dtype), (*shape[:2], 3))


def gradient(shape: tuple[int, ...], above: Colour, below: Colour, dtype: np.dtype[np.uint8 | np.uint16]) -> DeepPixels:
    """Return a vertical gradient (h, w, 3) between two 8-bit colours."""
    share = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
    column = np.array(above, np.float32) * (1 - share) + np.array(below, np.float32) * share
    return np.broadcast_to(_deep(column, dtype), (*shape[:2], 3))


def blurred(image: DeepPixels, sigma: float, only: Mask | None = None) -> DeepPixels:
    """Return the image with a Gaussian blur. With `only`, the blur averages these pixels only.

    A wide blur is computed at a smaller size, without a visible difference.

    Args:
        image: (h, w, 3) uint8 or uint16.
        sigma: standard deviation in pixels.
        only: (h, w) bool, pixels that contribute. None: all.
    """
    h, w = image.shape[:2]
    shrink = max(1, int(sigma / 4))
    size = (-(-w // shrink), -(-h // shrink))
    weight = np.ones((h, w), np.float32) if only is None else only.astype(np.float32)
    parts = [image.astype(np.float32) * weight[..., None], weight]
    small = [cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in parts]
    total, share = (cv2.GaussianBlur(p, (0, 0), max(sigma / shrink, 0.3), borderType=cv2.BORDER_REFLECT) for p in small)
    mixed = total / np.maximum(share, 1e-6)[..., None]
    large = cv2.resize(mixed, (w, h), interpolation=cv2.INTER_LINEAR)
    return np.rint(np.clip(large, 0, np.iinfo(image.dtype).max)).astype(image.dtype)


def covering(picture: Pixels, height: int, width: int) -> Pixels:
    """Return another image, resized to cover (height, width) and cropped to its centre."""
    h, w = picture.shape[:2]
    scale = max(height / h, width / w)
    size = max(width, round(w * scale)), max(height, round(h * scale))
    if size[0] * size[1] > affordable(height, width):  # the image is a strip
        part = min(h, max(1, round(height / scale))), min(w, max(1, round(width / scale)))
        y, x = (h - part[0]) // 2, (w - part[1]) // 2
        picture, size = picture[y : y + part[0], x : x + part[1]], (width, height)
    large = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(large[top : top + height, left : left + width])


def closed(image: DeepPixels, hole: Mask) -> DeepPixels:
    """Inpaint a region. Source: Telea, An Image Inpainting Technique Based on the Fast Marching Method, 2004 (OpenCV).

    Args:
        image: (h, w, 3) uint8 or uint16. The fill has 8 significant bits in any case.
        hole: (h, w) bool, the pixels to fill.
    """
    h, w = image.shape[:2]
    scale = min(1.0, LARGEST / max(h, w))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    eight = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    small = cv2.resize(eight, size, interpolation=cv2.INTER_AREA) if scale < 1 else eight
    mask: Pixels = hole.astype(np.uint8)
    if scale < 1:  # a pixel that the hole touches becomes part of it
        touched = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
        mask = np.asarray(cv2.dilate(touched.astype(np.uint8), np.ones((3, 3), np.uint8)), np.uint8)
    filled = cv2.inpaint(small, mask, TELEA_RADIUS, cv2.INPAINT_TELEA)
    large = cv2.resize(filled, (w, h), interpolation=cv2.INTER_CUBIC) if scale < 1 else filled
    return _deep(large, image.dtype)


def _deep(values: AnyArray, dtype: np.dtype[np.uint8 | np.uint16]) -> DeepPixels:
    """Convert 8-bit values to another dtype."""
    scale = np.iinfo(dtype).max // 255
    return np.rint(np.asarray(values, np.float32) * scale).astype(dtype)
