"""Selection of a detector's boxes, and scores of words for them.

Source: the class head of OWLv2 (Minderer et al., Scaling Open-Vocabulary Object Detection, NeurIPS 2023), as in
transformers. Shapes: N boxes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ovseg_batch.types.arrays import Floats, Indices, Numbers

EPS = 1e-6  # added to the norm of a word's embedding
LEAST_SIDE = 1.0  # pixels; smaller boxes are what clipping has left of boxes outside of the image


def best_boxes(boxes: Floats, objectness: Floats, count: int, floor: float) -> Indices:
    """Return the indices of the boxes with the highest objectness, best first.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in pixels, clipped to the image.
        objectness: (N,) in [0, 1].
        count: boxes at most.
        floor: least objectness.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    able = (sides >= LEAST_SIDE).all(axis=1) & (objectness >= floor)
    order = np.argsort(-objectness, kind="stable")
    found: Indices = order[able[order]][:count].astype(np.int64)
    return found


def word_scores(embeddings: Numbers, calibration: Floats, words: Floats) -> Floats:
    """Return the probability of each word for each box: sigmoid((cosine + shift) · scale), (N, Q) float32 in [0, 1].

    Each word is computed alone, so that the last bits of its scores do not depend on the others.

    Args:
        embeddings: (N, D) of the boxes, L2-normalised.
        calibration: (N, 2) shift and scale of each box.
        words: (Q, D) of any norm.
    """
    features, (shift, scale) = embeddings.astype(np.float32), calibration.T.astype(np.float32)
    scores = np.zeros((len(features), len(words)), np.float32)
    for k, word in enumerate(words):
        logits = (features @ (word / (np.linalg.norm(word) + np.float32(EPS))) + shift) * scale
        small = np.exp(-np.abs(logits))  # cannot overflow
        scores[:, k] = np.where(logits >= 0, 1, small) / (1 + small)
    return scores


def class_scores(scores: Floats, query_class: Sequence[int], classes: int) -> Floats:
    """Return the score of each box for each class, the highest of its words: (N, Q) → (N, C)."""
    owner = np.asarray(query_class)
    found: Floats = np.stack([scores[:, owner == k].max(axis=1) for k in range(classes)], axis=1)
    return found
