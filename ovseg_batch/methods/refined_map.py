"""Trident's refinement of a dense map by SAM's masks, as arrays.

Source: Shi et al., Harnessing Vision Foundation Models for High-Performance, Training-Free Open Vocabulary Segmentation
(Trident), ICCV 2025; code: `sam_refinement` in seg_utils/utils.py of YuHengsss/Trident.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ovseg_batch.methods.stitching import bilinear_matrix, bilinear_taps
from ovseg_batch.types.arrays import ClassMap, Integers

BLOCK_ELEMENTS = 16_000_000  # float32 values of a band of rows: 64 MB

#: first row, last row + 1 → (C, rows, W) probabilities of the classes at the original size
Rows = Callable[[int, int], Tensor]


class Halved(NamedTuple):
    """A dense map at half its size.

    Attributes:
        probabilities: (K, h, w) float32 of the wanted classes.
        highest: (h, w) float32, the highest of all classes.
    """

    probabilities: Tensor
    highest: Tensor


def halved_labels(labels: Integers) -> ClassMap:
    """Return every second pixel of a label map (H, W): (H // 2, W // 2), as `interpolate` with mode `nearest`."""
    ys, xs = (_nearest(side, side // 2) for side in labels.shape)
    return np.asarray(labels[np.ix_(ys, xs)], np.int16)


def halved_probabilities(rows: Rows, size: tuple[int, int], classes: Sequence[int], step: int) -> Halved:
    """Return probabilities at half the size, resized bilinearly (align_corners=False) after the softmax.

    Args:
        rows: the probabilities at the original size.
        size: (H, W) of the original.
        classes: the wanted classes.
        step: rows of the result that are computed at once.
    """
    height, width = size[0] // 2, size[1] // 2
    device = rows(0, 1).device
    y0, y1, fy = bilinear_taps(size[0], height, device)
    x0, x1, fx = bilinear_taps(size[1], width, device)
    found, highest = [], []
    for top in range(0, height, step):
        band = slice(top, min(top + step, height))
        first = int(y0[band][0])
        whole = rows(first, int(y1[band][-1]) + 1)
        down = torch.lerp(whole[:, y0[band] - first], whole[:, y1[band] - first], fy[band][None, :, None])
        small = torch.lerp(down[:, :, x0], down[:, :, x1], fx)
        found.append(small[list(classes)])
        highest.append(small.amax(dim=0))
    return Halved(torch.cat(found, dim=1), torch.cat(highest))


def padded_matrices(side: int, cells: int, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """Return the products that resize mask logits of a padded image like the published code: (H, cells), (W, cells).

    The logits are resized to the square of SAM, the padding is cut off, and the rest is resized in turn to each size.

    Args:
        side: side of the square in pixels.
        cells: side of the map of mask logits.
        sizes: (H, W) of the image in the square, of the image that SAM was given, and of the result.
    """
    matrices = []
    for axis in (0, 1):
        seen, *targets = (size[axis] for size in sizes)
        matrix = bilinear_matrix(cells, side, device)[:seen]
        for target in targets:
            matrix = bilinear_matrix(len(matrix), target, device) @ matrix
        matrices.append(matrix)
    return matrices


def strongest_classes(
    labels: ClassMap, rows: Rows, logits: Tensor, of_class: Sequence[int], resize: Sequence[Tensor], step: int
) -> ClassMap:
    """Return the class of each pixel: the highest product of a mask's probability and that of its class.

    A mask counts where its logit is positive. Pixels without a mask keep their class.

    Args:
        labels: (H, W) classes of the dense map.
        rows: probabilities of the classes.
        logits: (P, cells, cells) mask logits.
        of_class: class of each mask.
        resize: the two matrices of `padded_matrices`.
        step: rows that are computed at once.
    """
    down, across = resize
    refined = labels.copy()
    members = {label: [k for k, own in enumerate(of_class) if own == label] for label in sorted(set(of_class))}
    for top in range(0, len(labels), step):
        band = slice(top, min(top + step, len(labels)))
        probabilities = rows(band.start, band.stop)
        best = torch.zeros(probabilities.shape[1:], device=logits.device)
        winner = torch.full(best.shape, -1, dtype=torch.int16, device=logits.device)
        for label, masks in members.items():
            drawn = (down[band] @ logits[masks] @ across.T).amax(dim=0)
            score = torch.where(drawn > 0, drawn.sigmoid() * probabilities[label], 0)
            winner[score > best] = label
            best = torch.maximum(best, score)
        won = winner.cpu().numpy()
        refined[band] = np.where(won >= 0, won, refined[band])
    return refined


def _nearest(source: int, target: int) -> Integers:
    """Return the source index of each target index, as `interpolate` with mode `nearest` computes it in float32."""
    index = np.floor(np.arange(target, dtype=np.float32) * np.float32(source / max(target, 1)))
    return np.asarray(np.minimum(index, source - 1), np.int64)
