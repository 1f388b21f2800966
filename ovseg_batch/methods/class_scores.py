"""Compute text features, class probabilities and class decisions from the similarities of queries.

Source: Wang et al., SCLIP, ECCV 2024, and its code (wangf3014/SCLIP): text features, the softmax over all synonyms, and
the thresholds of probability and area. See docs/methods.md for `logit_scale`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ovseg_batch.methods.vocabulary import UNLABELLED, Vocabulary
from ovseg_batch.types.arrays import Indices, Mask


def vocabulary_probabilities(vocabulary: Vocabulary, logits: Tensor, logit_scale: float) -> Tensor:
    """Return the class probabilities (C, …) float32 of the channels of a dense map."""
    classes = len(vocabulary.names)
    return class_probabilities(logits, vocabulary.channel_class, classes, logit_scale, vocabulary.pooled)


def query_feature(features: Tensor) -> Tensor:
    """Return a query's feature (D,): the normalised mean of its templates' normalised features (T, D), as in SCLIP."""
    mean = torch.nn.functional.normalize(features.float(), dim=-1).mean(dim=0)
    return torch.nn.functional.normalize(mean, dim=-1)


def pool_background(cosine: Tensor, queries: int, logit_scale: float) -> Tensor:
    """Reduce the queries of the background to two channels, so that the cost does not grow with their number.

    The first channel is log Σ exp(s·c) / s over the background's queries, for the denominator of a softmax with logit
    scale s. The last channel is the maximum over these queries. `class_probabilities` reads both. Without resizing, the
    probabilities equal those of all queries.

    Args:
        cosine: (N, Q, h, w) similarities, the background's queries first.
        queries: number of background queries.
        logit_scale: s, the factor of the cosines in the softmax.

    Returns:
        (N, 1 + labels' queries + 1, h, w).
    """
    background = cosine[:, :queries]
    together = torch.logsumexp(background * logit_scale, dim=1, keepdim=True) / logit_scale
    return torch.cat([together, cosine[:, queries:], background.amax(dim=1, keepdim=True)], dim=1)


def class_probabilities(
    logits: Tensor, query_class: Sequence[int], classes: int, logit_scale: float, pooled: bool = False
) -> Tensor:
    """Compute class probabilities: a softmax over all queries, then the maximum over the queries of each class (SCLIP).

    Args:
        logits: (Q, …) cosine similarities in [-1, 1]; with `pooled` the channels of `pool_background`.
        query_class: class of each query, length Q, ascending; with `pooled` without the last channel.
        classes: C, the number of classes.
        logit_scale: multiplies the cosines before the softmax.
        pooled: whether class 0 has the first and the last channel.

    Returns:
        (C, …) float32. Columns sum to 1 only where every class has one query.
    """
    if pooled:
        probabilities = torch.softmax(logits[:-1].float() * logit_scale, dim=0)
        probabilities[0] *= ((logits[-1].float() - logits[0].float()) * logit_scale).clamp(max=0.0).exp()
    else:
        probabilities = torch.softmax(logits.float() * logit_scale, dim=0)
    if tuple(query_class) == tuple(range(classes)):
        return probabilities
    for query, label in enumerate(query_class):  # in place: the channel of a class never follows those of its queries
        if query and query_class[query - 1] == label:
            torch.maximum(probabilities[label], probabilities[query], out=probabilities[label])
        elif label != query:
            probabilities[label] = probabilities[query]
    return probabilities[:classes]


def scarce_classes(counts: Indices, area_threshold: float, has_background: bool) -> Mask:
    """Return the classes that the area rule removes: (C,) bool.

    A class is removed if its share of the foreground pixels is at most the threshold (SCLIP, `area_thd`). The
    background is never removed.

    Args:
        counts: (C,) pixels won by each class.
        area_threshold: share in [0, 1]; 0 disables the rule.
        has_background: whether class 0 is the background, which is not part of the foreground.
    """
    first = int(has_background)
    scarce = np.zeros(len(counts), dtype=bool)
    if area_threshold > 0:
        foreground = counts[first:]
        scarce[first:] = foreground <= area_threshold * foreground.sum()
    return scarce


def decide(probabilities: Tensor, scarce: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most probable class per pixel, its probability, and the probability of the second class.

    Args:
        probabilities: (C, …) of `class_probabilities`.
        scarce: (C,) bool, classes to zero before the decision.

    Returns:
        labels (…) int16, and two probabilities (…) float32.
    """
    if scarce is not None and bool(scarce.any()):
        probabilities = probabilities * (~scarce).view(-1, *[1] * (probabilities.dim() - 1))
    best, labels = probabilities.max(dim=0)
    probabilities.scatter_(0, labels[None], 0.0)
    second = probabilities.amax(dim=0)
    # restores the input, which is cheaper than a copy of all classes
    probabilities.scatter_(0, labels[None], best[None])
    return labels.to(torch.int16), best, second


def drop_unlikely(labels: Tensor, best: Tensor, thresholds: Tensor, has_background: bool) -> None:
    """Change the class of the pixels that do not reach the threshold of their class.

    Args:
        labels: (…) int16 of `decide`, changed in place: to class 0 with a background, otherwise to `UNLABELLED`.
        best: (…) float32, probability of the class.
        thresholds: (C,) least probability of a pixel, per class.
        has_background: whether class 0 is the background.
    """
    labels.masked_fill_(best < thresholds[labels.long()], 0 if has_background else UNLABELLED)
