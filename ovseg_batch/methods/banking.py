"""Mix the class scores of a region with those of its nearest neighbours in a memory bank.

Source: the memory bank of unlabelled regions in CorrCLIPv2. CorrCLIPv2 uses DINO features as keys and regions of
another data set. Here, CLIP features are keys and values, and the bank may hold the images of the run.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ovseg_batch.types.arrays import Floats, Indices, Integers, Numbers


def region_features(features: Numbers, boxes: Indices, owner: Integers, count: int) -> Floats:
    """Return the mean patch feature of every region. Patches are weighted by the share that the region covers.

    Args:
        features: (N, gh, gw, D), L2-normalised, of N windows.
        boxes: (N, 4) y0, x0, y1, x1 of the windows, in pixels of the resized image.
        owner: (h, w) integer at that size: region of each pixel, 1 … count; 0 for none.
        count: number of regions.

    Returns:
        (count, D) float32, L2-normalised; zeros for a region without pixels.
    """
    grid = features.shape[1:3]
    sums = np.zeros((count, features.shape[-1]), np.float32)
    for patches, (y0, x0, y1, x1) in zip(features, boxes.tolist(), strict=True):
        part = owner[y0:y1, x0:x1]
        for region in np.unique(part[part > 0]).tolist():
            weights = cv2.resize((part == region).astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
            sums[region - 1] += np.tensordot(weights, patches.astype(np.float32), axes=2)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / np.where(length > 0, length, 1), np.float32)


def nearest_others(found: Indices, of_image: NDArray[np.uint64], image: int, wanted: int) -> Indices:
    """Return the K nearest neighbours of each region that come from other images.

    Args:
        found: (R, M) indices into the bank, nearest first; negative for padding.
        of_image: (B,) image of each region in the bank.
        image: the image of the R regions.
        wanted: K.

    Returns:
        (R, K) int64; padded with -1.
    """
    chosen = np.full((len(found), wanted), -1, np.int64)
    for row, neighbours in enumerate(found):
        usable = neighbours[neighbours >= 0]
        usable = usable[of_image[usable] != image][:wanted]
        chosen[row, : len(usable)] = usable
    return chosen


def mixed_scores(own: Floats, neighbours: Sequence[Floats], weight: float) -> Floats:
    """Return the class scores (R, C) of regions, mixed with the mean scores of their neighbours.

    Args:
        own: (R, C).
        neighbours: scores (K, C) of the neighbours of each region. A region without neighbours keeps its scores.
        weight: weight of the neighbours, in [0, 1].
    """
    mixed = own.copy()
    for row, others in enumerate(neighbours):
        if len(others):
            mixed[row] = (1 - weight) * own[row] + weight * others.mean(axis=0)
    return mixed
