"""Metrics of generated images: the distance between two sets of images, and the similarity of images to texts.

Source: García García 2025, section 4.2.3, eq. 4.5 and 4.6. FID is defined for Inception features. With other features,
such as CLIP's, the distance must be reported under another name.
"""

from __future__ import annotations

import numpy as np

from ovseg_batch.types.arrays import Numbers


def frechet_distance(real: Numbers, generated: Numbers) -> float:
    """Return the Fréchet distance between Gaussians that are fitted to two sets of features.

    Args:
        real, generated: (N, D) and (M, D) float, at least two rows each.

    Returns:
        |μ - μ'|² + Tr(Σ + Σ' - 2 (ΣΣ')^½), 0 for equal means and covariances.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"needs at least two images of each set, but there are {len(real)} and {len(generated)}")
    a, b = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (real.astype(float), generated.astype(float)))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()  # Tr (ΣΣ')^½, of a similar symmetric matrix
    apart = real.mean(axis=0, dtype=float) - generated.mean(axis=0, dtype=float)
    return float(apart @ apart + np.trace(a) + np.trace(b) - 2 * cross)


def clip_score(images: Numbers, words: Numbers) -> float:
    """Return the mean cosine similarity of images and their texts.

    Args:
        images, words: (N, D) features, L2-normalised; one row per image.
    """
    return float((images * words).sum(axis=1).mean())
