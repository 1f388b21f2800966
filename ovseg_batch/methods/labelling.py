"""Compute the class of every pixel at the original size from stored window logits, in bounded memory.

SCLIP upsamples the logits of all classes to full size before the softmax, which needs 8 GB for 171 classes at 12
megapixels. This module computes the same values in horizontal strips, because a bilinear row depends on two source rows
only. Source rows are stitched when a strip needs them. `enlarging` computes maps of images that are much larger than
the stitched map.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.methods.class_scores import decide, drop_unlikely, scarce_classes, vocabulary_probabilities
from ovseg_batch.methods.enlarging import Decided, enlarged
from ovseg_batch.methods.presence import CLEAR_MARGIN
from ovseg_batch.methods.stitching import Stitched, bilinear_taps
from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.types.arrays import ClassMap, Floats, Pixels

MUCH_LARGER = 4.0  # pixels of the image for each value of the map, from which on `enlarging` computes the classes
BLOCK_ELEMENTS = 16_000_000  # float32 values per stitched block: 64 MB
STRIP_ELEMENTS = 2_000_000  # float32 values per strip on a CPU; few enough to stay in the cache between passes


class LabelMap(NamedTuple):
    """The class of every pixel of an image.

    Attributes:
        labels: (H, W) int16, `UNLABELLED` = -1.
        confidence: (H, W) float32, probability of the class.
        lead: (H, W) float32, difference to the probability of the second class.
        sure: (H, W) uint8, level by which the class exceeds the background: `presence.SURE`, `presence.CLEAR`, or 0.
            None without a margin.
    """

    labels: ClassMap
    confidence: Floats
    lead: Floats
    sure: Pixels | None


def label_map(
    logits: Tensor | Stitched,
    size: tuple[int, int],
    vocabulary: Vocabulary,
    logit_scale: float,
    prob_threshold: float,
    area_threshold: float,
    margin: float = 0.0,
) -> LabelMap:
    """Compute the class of every pixel, its probability, and its lead over the second class.

    Args:
        logits: (Q, h, w) float32 cosine similarities at the resized size, or the windows that they are stitched from.
        size: original (H, W).
        vocabulary: classes of the queries, with their thresholds.
        logit_scale: factor of the cosines in the softmax.
        prob_threshold, area_threshold: least probability and area share of a class, in [0, 1]; SCLIP's `prob_thd` and
            `area_thd`.
        margin: similarity by which the class of a sure pixel exceeds the best background word. 0: not computed.
    """
    classes, device = len(vocabulary.names), logits.device
    thresholds = torch.tensor(vocabulary.thresholds).clamp(min=prob_threshold)
    limits = thresholds.to(device) if bool((thresholds > 0).any()) else None
    labels = torch.empty(size, dtype=torch.int16, device=device)
    confidence, lead = (torch.empty(size, dtype=torch.float32, device=device) for _ in range(2))
    sure = torch.empty(size, dtype=torch.uint8, device=device) if margin else None
    odds = [math.exp(-factor * margin * logit_scale) for factor in (1.0, CLEAR_MARGIN)]

    def run(scarce: Tensor | None) -> None:
        for top, found in _decided(logits, size, vocabulary, logit_scale, scarce, bool(margin)):
            rows = slice(top, top + len(found.labels))
            if limits is not None:
                drop_unlikely(found.labels, found.best, limits, vocabulary.has_background)
            labels[rows], confidence[rows], lead[rows] = found.labels, found.best, found.best - found.second
            if sure is not None and found.background is not None:
                sure[rows] = (found.background <= odds[0] * found.best).byte()
                sure[rows] += found.background <= odds[1] * found.best

    run(None)
    if area_threshold > 0:
        counts = torch.bincount(labels[labels >= 0], minlength=classes).cpu().numpy()
        scarce = scarce_classes(counts, area_threshold, vocabulary.has_background)
        if (counts[scarce] > 0).any():
            run(torch.from_numpy(scarce).to(device))
    return LabelMap(
        labels.cpu().numpy(), confidence.cpu().numpy(), lead.cpu().numpy(), None if sure is None else sure.cpu().numpy()
    )


def _decided(
    logits: Tensor | Stitched,
    size: tuple[int, int],
    vocabulary: Vocabulary,
    logit_scale: float,
    scarce: Tensor | None,
    with_background: bool,
) -> Iterator[tuple[int, Decided]]:
    """Yield the first row of each strip of the image, and the decisions for its pixels."""
    _, h, w = logits.shape
    if size[0] * size[1] >= MUCH_LARGER * h * w:
        rows = functools.partial(_rows, logits)
        yield from enlarged(
            rows, (h, w), size, vocabulary, logit_scale, logits.device, scarce, with_background=with_background
        )
        return
    for top, strip in upsampled_strips(logits, size):
        probabilities = vocabulary_probabilities(vocabulary, strip, logit_scale)
        yield top, Decided(*decide(probabilities, scarce), probabilities[0] if with_background else None)


def closed(labels: ClassMap, side: int) -> ClassMap:
    """Close a map of class numbers morphologically: the largest number around each pixel, then the smallest.

    Gaps and lines that are narrower than the square get the surrounding class, if its number is higher. Source: the
    code of ITACLIP (Aydın et al., CVPR Workshops 2025), with a side of 3.

    Args:
        labels: (H, W) int16.
        side: of the square, in pixels. Pixels outside of the image do not count.

    Returns:
        (H, W) int16.
    """
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (side, side))
    return np.asarray(cv2.morphologyEx(labels, cv2.MORPH_CLOSE, square), np.int16)


def upsampled_strips(logits: Tensor | Stitched, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Resize (Q, h, w) to (Q, H, W) bilinearly (align_corners=False), in horizontal strips.

    Yields:
        first row of the strip and the strip (Q, rows, W) float32; together they equal `interpolate` of the whole.
    """
    queries, h, w = logits.shape
    H, W = size
    y0, y1, fy = bilinear_taps(h, H, logits.device)
    block, step = (max(1, most // (queries * max(W, w))) for most in (BLOCK_ELEMENTS, STRIP_ELEMENTS))
    if logits.device.type == "cuda":
        step = block
    for first in range(0, H, block):
        last = min(first + block, H)
        start = int(y0[first])
        source = _rows(logits, start, int(y1[last - 1]) + 1)
        for top in range(first, last, step):
            rows = slice(top, min(top + step, last))
            if (h, w) == size:
                yield top, source[:, rows.start - start : rows.stop - start]
                continue
            vertical = torch.lerp(source[:, y0[rows] - start], source[:, y1[rows] - start], fy[rows][None, :, None])
            yield top, F.interpolate(vertical[None], (vertical.shape[1], W), mode="bilinear")[0]


def _rows(logits: Tensor | Stitched, top: int, bottom: int) -> Tensor:
    return logits.rows(top, bottom) if isinstance(logits, Stitched) else logits[:, top:bottom]


def resampled(
    logits: Tensor | Stitched, box: tuple[int, int, int, int], size: tuple[int, int], at: tuple[int, int]
) -> Tensor:
    """Resample a part of the map bilinearly.

    Args:
        logits: (Q, h, w).
        box: x0, y0, x1, y1 in pixels of the original image.
        size: (H, W) of the original image.
        at: (rows, columns) of the result.

    Returns:
        (Q, rows, columns) float32.
    """
    _, h, w = logits.shape
    x0, x1, fx = _taps(w, box[0] / size[1] * w, box[2] / size[1] * w, at[1], logits.device)
    y0, y1, fy = _taps(h, box[1] / size[0] * h, box[3] / size[0] * h, at[0], logits.device)
    first = int(y0[0])
    rows = _rows(logits, first, int(y1[-1]) + 1)
    vertical = torch.lerp(rows[:, y0 - first], rows[:, y1 - first], fy[None, :, None])
    return torch.lerp(vertical[:, :, x0], vertical[:, :, x1], fx[None, None])


def _taps(source: int, start: float, stop: float, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return `bilinear_taps` for the part of the source between two coordinates."""
    steps = (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * ((stop - start) / count) + start - 0.5
    position = steps.clamp(0, source - 1)
    lower = position.floor().long()
    return lower, (lower + 1).clamp(max=source - 1), position - lower
