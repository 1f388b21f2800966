"""Pad an image to a square and resize it as OWLv2 was trained: with a Gaussian blur before bilinear sampling.

What is computed is what `Owlv2ImageProcessor` of transformers computes on PyTorch. Each axis is blurred and sampled in
one product, so neither the padded square nor a float copy of the image exists. Source: Minderer et al., Scaling
Open-Vocabulary Object Detection, NeurIPS 2023; the blur is that of `skimage.transform.resize`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ovseg_batch.types.arrays import Pixels


@dataclass(frozen=True, slots=True)
class Taps:
    """The samples of one axis: each is a weighted sum of K pixels.

    Attributes:
        places: (side, K) int64 indices of pixels of the image.
        weights: (side, K) float32; 0 for pixels of the padding, which are black.
    """

    places: Tensor
    weights: Tensor


def square_taps(length: int, square: int, side: int) -> Taps:
    """Return the samples of one axis of an image in the padded square.

    Args:
        length: pixels of the image along the axis.
        square: pixels of the padded square along it, at least `length`.
        side: samples.
    """
    kernel = _kernel(square, side)
    radius = len(kernel) // 2
    scale = np.float32(square) / np.float32(side)
    where = np.maximum(scale * (np.arange(side, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    first = np.minimum(where.astype(np.int64), square - 1)
    share = np.where(first < square - 1, where - first, 0).astype(np.float32)[:, None]  # of the next pixel
    places = np.abs(first[:, None] + np.arange(-radius, radius + 2))
    places = np.where(places < square, places, 2 * (square - 1) - places)  # reflected at the edges of the square
    weights = (1 - share) * np.append(kernel, 0) + share * np.append(0, kernel)
    inside = (places >= 0) & (places < length)
    return Taps(
        torch.from_numpy(np.where(inside, places, 0)),
        torch.from_numpy(np.where(inside, weights, 0).astype(np.float32)),
    )


def square_resized(image: Pixels, side: int, device: torch.device) -> Tensor:
    """Return an image in a black square at its upper left, blurred and resized.

    Args:
        image: (H, W, 3) uint8 of any size.
        side: pixels of the result.

    Returns:
        (3, side, side) float32 on the device, in [0, 1].
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).reshape(height, width * 3)
    rows = _sampled(pixels, square_taps(height, max(height, width), side)).reshape(side, width, 3)
    across = rows.transpose(0, 1).reshape(width, side * 3)
    both = _sampled(across, square_taps(width, max(height, width), side)).reshape(side, side, 3)
    return both.permute(2, 1, 0) / 255


def _sampled(pixels: Tensor, taps: Taps) -> Tensor:
    """Return the samples of the first axis: (n, m) of any dtype → (side, m) float32."""
    places, weights = taps.places.to(pixels.device), taps.weights.to(pixels.device)
    found = torch.zeros(len(places), pixels.shape[1], device=pixels.device)
    for k in range(places.shape[1]):
        found.addcmul_(pixels[places[:, k]].float(), weights[:, k, None])
    return found


def _kernel(square: int, side: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the Gaussian of the blur, (2 · radius + 1,) float32 with the sum 1; one element where nothing shrinks."""
    sigma = max(0.0, (float(np.float32(square) / np.float32(side)) - 1) / 2)
    radius = math.ceil(3 * sigma)
    offsets = np.arange(-radius, radius + 1, dtype=np.float64)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma else np.ones(1)
    kernel: np.ndarray[tuple[int], np.dtype[np.float32]] = (weights / weights.sum()).astype(np.float32)
    return kernel
