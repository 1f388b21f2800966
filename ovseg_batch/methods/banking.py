"""Regions that look alike tell each other what they are: a region's scores mixed with those of its nearest neighbours.

Source: the idea of CorrCLIPv2's memory bank, an unlabelled store of regions. There the keys are DINO's features and the
bank is another data set's; here CLIP's features are key and value, and the bank may be the run's own folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]


def region_features(features: Array, boxes: Array, owner: Array, count: int) -> Array:
    """The mean patch feature of every region, each window's patches weighted by how much of them the region covers.

    Args:
        features: (N, gh, gw, D), L2-normalised, of N windows.
        boxes: (N, 4) y0, x0, y1, x1 of the windows, in pixels of the size CLIP saw.
        owner: (h, w) integer at that size: which region a pixel is of, 1 … count, 0 for none.
        count: how many regions there are.

    Returns:
        (count, D) float32, L2-normalised; zeros for a region that has no pixel.
    """
    grid = features.shape[1:3]
    sums = np.zeros((count, features.shape[-1]), np.float32)
    for patches, (y0, x0, y1, x1) in zip(features, boxes.tolist(), strict=True):
        part = owner[y0:y1, x0:x1]
        for region in np.unique(part[part > 0]).tolist():
            weights = cv2.resize((part == region).astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
            sums[region - 1] += np.tensordot(weights, patches.astype(np.float32), axes=2)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    normalised: Array = sums / np.where(length > 0, length, 1)
    return normalised


def nearest_others(found: Array, of_image: Array, image: int, wanted: int) -> Array:
    """Of neighbours in order of nearness the first few that are not of the image itself.

    Args:
        found: (R, M) indices into the bank, nearest first, negative where there are no more.
        of_image: (B,) which image each region of the bank is of.
        image: the one that asks.
        wanted: K.

    Returns:
        (R, K) int64; -1 where there are fewer.
    """
    chosen = np.full((len(found), wanted), -1, np.int64)
    for row, neighbours in enumerate(found):
        usable = neighbours[neighbours >= 0]
        usable = usable[of_image[usable] != image][:wanted]
        chosen[row, : len(usable)] = usable
    return chosen


def mixed_scores(own: Array, neighbours: Sequence[Array], weight: float) -> Array:
    """Each region's class scores, mixed with the mean of its neighbours'.

    Args:
        own: (R, C).
        neighbours: for each region the (K, C) of its neighbours; one without any keeps its own.
        weight: of the neighbours, in [0, 1].
    """
    mixed = own.copy()
    for row, others in enumerate(neighbours):
        if len(others):
            mixed[row] = (1 - weight) * own[row] + weight * others.mean(axis=0)
    return mixed
