"""From stored window logits to a class per pixel at the original size, in bounded memory.

SCLIP upsamples all class logits to full size before the softmax; 171 classes at 12 megapixels are 8 GB that way. The
same numbers come out of horizontal strips, since bilinear rows depend on two source rows only; and these are stitched
when a strip asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.methods.class_scores import decide, scarce_classes, vocabulary_probabilities
from ovseg_batch.methods.presence import CLEAR_MARGIN
from ovseg_batch.methods.stitching import Stitched, bilinear_taps
from ovseg_batch.methods.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]

BLOCK_ELEMENTS = 16_000_000  # float32 values that are stitched for at a time: 64 MB
STRIP_ELEMENTS = 2_000_000  # of a strip on a CPU, so few that one pass over them leaves them in the cache for the next


class LabelMap(NamedTuple):
    """A class for every pixel of an image.

    Attributes:
        labels: (H, W) int16, `UNLABELLED` = -1.
        confidence: (H, W) float16, the class's probability.
        lead: (H, W) float16, by how much it exceeds the next class's.
        sure: (H, W) uint8, how clearly the class exceeds the background: `presence.SURE`, `presence.CLEAR`, or 0.
            None without a margin.
    """

    labels: Array
    confidence: Array
    lead: Array
    sure: Array | None


def label_map(
    logits: Tensor | Stitched,
    size: tuple[int, int],
    vocabulary: Vocabulary,
    logit_scale: float,
    prob_threshold: float,
    area_threshold: float,
    margin: float = 0.0,
) -> LabelMap:
    """The dense prediction: class and probability of every pixel, and the probability's lead over the next class's.

    Args:
        logits: (Q, h, w) float32 cosine similarities at the size CLIP saw, or what they are stitched from.
        size: original (H, W).
        vocabulary: classes behind the queries, and their own thresholds.
        logit_scale, prob_threshold, area_threshold: as METHODS 2 and SCLIP.
        margin: similarity by which a sure pixel's class exceeds the best word of the background, class 0; 0: none.
    """
    classes = len(vocabulary.names)
    thresholds = torch.tensor(vocabulary.thresholds).clamp(min=prob_threshold).to(logits.device)
    labels = np.empty(size, np.int16)
    confidence, leads = np.empty(size, np.float16), np.empty(size, np.float16)
    sure = np.empty(size, np.uint8) if margin else None
    odds = [math.exp(-factor * margin * logit_scale) for factor in (1.0, CLEAR_MARGIN)]

    def run(scarce: Tensor | None) -> Array:
        counts = np.zeros(classes, np.int64)
        for top, strip in upsampled_strips(logits, size):
            probabilities = vocabulary_probabilities(vocabulary, strip, logit_scale)
            won, best, lead = decide(probabilities, thresholds, vocabulary.has_background, scarce)
            rows = slice(top, top + won.shape[0])
            labels[rows] = won.cpu().numpy()
            confidence[rows] = best.half().cpu().numpy()
            leads[rows] = lead.half().cpu().numpy()
            if sure is not None:
                level = (probabilities[0] <= odds[0] * best).byte()
                level += probabilities[0] <= odds[1] * best
                sure[rows] = level.cpu().numpy()
            if area_threshold > 0:
                counts += np.bincount(labels[rows][labels[rows] >= 0], minlength=classes)
        return counts

    counts = run(None)
    scarce = scarce_classes(counts, area_threshold, vocabulary.has_background)
    if (counts[scarce] > 0).any():
        run(torch.from_numpy(scarce).to(logits.device))
    return LabelMap(labels, confidence, leads, sure)


def upsampled_strips(logits: Tensor | Stitched, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Bilinear resize (align_corners=False) of (Q, h, w) to (Q, H, W), as horizontal strips.

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
    """A part of the map at another resolution, bilinear.

    Args:
        logits: (Q, h, w).
        box: x0, y0, x1, y1 in pixels of the original image.
        size: (H, W) of the original image.
        at: (rows, columns) wanted.

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
    """`bilinear_taps` for the part of the source between two places."""
    steps = (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * ((stop - start) / count) + start - 0.5
    position = steps.clamp(0, source - 1)
    lower = position.floor().long()
    return lower, (lower + 1).clamp(max=source - 1), position - lower
