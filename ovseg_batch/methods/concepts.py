"""Masks that a model finds for each word alone: duplicates, rivals of other classes, and the fusion of its two heads.

Every word is scored without the others, so one object may have masks of several words and classes. Shapes: M masks, W
words, C classes. Source of the fusion: SegEarth-OV3 and ConceptBank (arXiv 2602.06333), which take for each pixel the
maximum of the instance head and the semantic head.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ovseg_batch.methods.tiles import Box
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.types.arrays import ClassMap, Floats, Numbers, Pixels

SAME_PIXELS = 0.5  # IoU from which masks of two classes show the same object
LEVELS = 255  # steps of a stored probability


def distinct_in_class(
    scores: Numbers, classes: Sequence[int], overlap: Numbers, inside: Numbers, nms: float, contained: float
) -> list[int]:
    """Return the masks after non-maximum suppression within each class, best first.

    A mask is dropped if its IoU with a better one of its class exceeds `nms`, or if the smaller of the two lies in the
    larger with a share above `contained`.

    Args:
        scores: (M,) scores.
        classes: class of each mask.
        overlap: (M, M) IoU.
        inside: (M, M) share of mask i that lies in mask j.
        nms: highest IoU of two kept masks of a class; 1 drops none.
        contained: highest share of a kept mask that lies in another one of its class; 1 drops none.
    """
    of = np.asarray(classes)
    rival = (overlap > nms) | (np.maximum(inside, inside.T) > contained)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        better = [other for other in kept if of[other] == of[index]]
        if not rival[index, better].any():
            kept.append(index)
    return kept


def rival_scores(scores: Numbers, classes: Sequence[int], overlap: Numbers) -> Numbers:
    """Return the best score of a mask of another class with an IoU of at least `SAME_PIXELS`: (M,), 0 without one.

    Args:
        scores: (M,) scores.
        classes: class of each mask.
        overlap: (M, M) IoU.
    """
    of = np.asarray(classes)
    rivals = (overlap >= SAME_PIXELS) & (of[:, None] != of[None])
    best: Numbers = np.where(rivals, scores[None], 0.0).max(axis=1, initial=0.0)
    return best


def fused_word(masks: Tensor, scores: Tensor, presence: float, soft: Tensor) -> Tensor:
    """Fuse the two heads for one word: max(max_k score_k · mask_k, presence · soft map), (h, w) in [0, 1].

    Args:
        masks: (K, h, w) probability of the pixels of each query.
        scores: (K,) score of each query, with the presence.
        presence: probability that the word is in the image.
        soft: (h, w) probability that a pixel shows the word.
    """
    semantic = presence * soft
    if not len(masks):
        return semantic
    return torch.maximum((scores[:, None, None] * masks).amax(dim=0), semantic)


def stored(probabilities: Tensor) -> Pixels:
    """Return probabilities in steps of 1 / `LEVELS`, uint8."""
    return (probabilities * LEVELS).round().clamp(0, LEVELS).to(torch.uint8).cpu().numpy()


def pasted(whole: Pixels, part: Pixels, view: Box, size: tuple[int, int]) -> Pixels:
    """Return the maximum of a map of an image and that of a part of it, which is made smaller.

    Args:
        whole, part: (h, w) maps as `stored` returns them.
        view: the part of the image, in pixels.
        size: (H, W) of the image.
    """
    height, width = whole.shape
    left, right = (round(edge * width / size[1]) for edge in (view[0], view[2]))
    top, bottom = (round(edge * height / size[0]) for edge in (view[1], view[3]))
    place = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
    rows, columns = whole[place].shape
    small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
    joined = whole.copy()
    joined[place] = np.maximum(whole[place], small)
    return joined


def fused_labels(
    maps: Pixels, classes: Sequence[int], least: Sequence[float], size: tuple[int, int]
) -> tuple[ClassMap, Floats, Floats]:
    """Return the class of every pixel of an image: that of the highest fused map of one of its words.

    Args:
        maps: (W, h, w) fused maps as `stored` returns them.
        classes: class of each word.
        least: lowest value of a pixel, for each class, in [0, 1].
        size: (H, W) of the image. Maps are resized bilinearly.

    Returns:
        labels (H, W) int16, `UNLABELLED` where no class reaches its value; the highest value and its lead over that of
        the next class, (H, W) float32 in [0, 1].
    """
    labels = np.full(size, UNLABELLED, np.int16)
    best, second = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for label in sorted(set(classes)):
        own = maps[[k for k, one in enumerate(classes) if one == label]].max(axis=0)
        value = cv2.resize(own.astype(np.float32) / LEVELS, size[::-1], interpolation=cv2.INTER_LINEAR)
        np.maximum(second, np.minimum(best, value), out=second)
        won = value > best
        labels[won & (value >= least[label])] = label
        labels[won & (value < least[label])] = UNLABELLED
        np.maximum(best, value, out=best)
    return labels, best, best - second
