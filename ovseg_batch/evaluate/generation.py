"""How good generated images are: the distance between two sets of pictures, and how far a picture shows its words.

Source: thesis 4.2.3 (eq. 4.5 and 4.6). FID proper takes Inception's features; whoever has other features, as CLIP's,
gets the same distance in those and should say so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def frechet_distance(real: Array, generated: Array) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features.

    Args:
        real, generated: (N, D) and (M, D) float, at least two of each.

    Returns:
        |μ - μ'|² + Tr(Σ + Σ' - 2 (ΣΣ')^½), 0 for sets alike in mean and covariance.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"needs two pictures of each, there are {len(real)} and {len(generated)}")
    a, b = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (real.astype(float), generated.astype(float)))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()  # Tr (ΣΣ')^½, by a symmetric matrix alike
    apart = real.mean(axis=0, dtype=float) - generated.mean(axis=0, dtype=float)
    return float(apart @ apart + np.trace(a) + np.trace(b) - 2 * cross)


def clip_score(images: Array, words: Array) -> float:
    """Mean cosine similarity of each picture with its own words.

    Args:
        images, words: (N, D), L2-normalised, one line of each for a picture.
    """
    return float((images * words).sum(axis=1).mean())
