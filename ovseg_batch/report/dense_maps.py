"""Compute the class probabilities of an image on a coarse grid from what the dense stage has kept.

This module imports PyTorch, so it is imported only where dense maps are shown.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ovseg_batch.methods.class_scores import pool_background, vocabulary_probabilities
from ovseg_batch.methods.maskclip import RULED_OUT
from ovseg_batch.methods.windows import window_boxes
from ovseg_batch.report.dense_view import DenseView, grid_of
from ovseg_batch.stages.upstream import CommittedShard
from ovseg_batch.types import ImageRow
from ovseg_batch.types.arrays import Doubles, Floats, Indices


@torch.inference_mode()
def grid_probabilities(view: DenseView, shard: CommittedShard, row: ImageRow) -> Floats:
    """Return the class probabilities of an image on the grid, before thresholds and post-processing.

    Args:
        view: the maps of the run.
        shard: the shard of the dense stage that holds the image.
        row: of the image.

    Returns:
        (C, h, w) float32 in [0, 1].
    """
    vocabulary, values = view.vocabulary, shard.values(row.row)
    assert vocabulary is not None
    size, resized = (values["height"], values["width"]), (values["resized_height"], values["resized_width"])
    boxes = window_boxes(*resized, view.window, view.stride)
    logits = _logits(view, shard, row.row, boxes)
    others = vocabulary.left_out(row.extra.get("prompts"))
    if others:
        logits[:, others] = RULED_OUT
    cells = stitched_at(logits, boxes, resized, grid_of(size))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would take longer to start than so few cells take
    try:
        found = vocabulary_probabilities(vocabulary, cells, view.logit_scale)
    finally:
        torch.set_num_threads(threads)
    return np.asarray(found.numpy(), np.float32)


def stitched_at(logits: Tensor, boxes: Indices, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return the mean of bilinearly upsampled windows, as `Stitched`, at the centres of a coarse grid alone.

    Args:
        logits: (N, Q, gh, gw), one map per window.
        boxes: (N, 4) of `window_boxes`.
        size: (h, w) of the image that the windows cover, in pixels.
        grid: rows and columns of the result.

    Returns:
        (Q, rows, columns) float32.
    """
    y, x = ((np.arange(cells) + 0.5) * (pixels / cells) for pixels, cells in zip(size, grid, strict=True))
    maps = logits.float().numpy()
    total, count = np.zeros((maps.shape[1], *grid), np.float32), np.zeros(grid, np.float32)
    for of_window, (y0, x0, y1, x1) in zip(maps, boxes.tolist(), strict=True):
        rows, columns = slice(*np.searchsorted(y, (y0, y1))), slice(*np.searchsorted(x, (x0, x1)))
        down = _weights((y[rows] - y0) / (y1 - y0), maps.shape[2])
        across = _weights((x[columns] - x0) / (x1 - x0), maps.shape[3])
        total[:, rows, columns] += down @ of_window @ across.T
        count[rows, columns] += 1
    return torch.from_numpy(total / np.maximum(count, 1))


def _weights(at: Doubles, cells: int) -> Floats:
    """Return the weights (positions, cells) of a bilinear resize, for positions in [0, 1] along a window."""
    position = np.clip(at * cells - 0.5, 0, cells - 1)
    lower = position.astype(np.int64)
    index, upper = np.arange(len(at)), np.minimum(lower + 1, cells - 1)
    weights = np.zeros((len(at), cells), np.float32)
    weights[index, lower] = 1 - (position - lower)
    weights[index, upper] += (position - lower).astype(np.float32)
    return weights


def _logits(view: DenseView, shard: CommittedShard, row: int, boxes: Indices) -> Tensor:
    """Return the similarities of every window, (windows, Q, gh, gw)."""
    top, left, bottom, right = boxes[0].tolist()
    cells = ((bottom - top) // view.patch, (right - left) // view.patch)
    grid = (None, None) if view.spliced else cells
    assert view.vocabulary is not None
    if view.text is None:
        return torch.from_numpy(shard.array(row, "logits", (len(boxes), view.vocabulary.channels, *grid)).copy())
    kept = shard.array(row, "features", (len(boxes), *grid, view.text.shape[1]))
    cosine = torch.einsum("bhwd,qd->bqhw", torch.from_numpy(kept).float(), view.text)
    if not view.vocabulary.pooled:
        return cosine
    return pool_background(cosine, view.vocabulary.background_queries, view.logit_scale)
