"""Merge the masks that two methods have found in an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.types.arrays import Doubles

CONTRADICTED = 0.5  # factor of the confidence of a mask where the other method has no pixel of the class


def pairs(overlap: Doubles, first: Sequence[str], second: Sequence[str], least: float) -> dict[int, int]:
    """Return first mask → second mask of those that show the same. A mask is in one pair at most.

    Pairs with a higher IoU come first, and then those of earlier masks.

    Args:
        overlap: (M, N) IoU in [0, 1].
        first, second: classes of the M and of the N masks.
        least: IoU of a pair; an IoU of 0 is no pair.
    """
    same = np.array(first, object)[:, None] == np.array(second, object)[None, :]
    rows, columns = np.nonzero(same & (overlap >= least) & (overlap > 0))
    found, taken = dict[int, int](), set[int]()
    for k in np.argsort(-overlap[rows, columns], kind="stable").tolist():
        row, column = int(rows[k]), int(columns[k])
        if row not in found and column not in taken:
            found[row] = column
            taken.add(column)
    return found


def agreed(confidence: float, coverage: float) -> float:
    """Return the confidence of a mask, given what another method says, in [0, 1].

    The factor falls linearly from 1, where the other method has all of the mask, to `CONTRADICTED`. Our own formula,
    chosen on rendered scenes (docs/confidence.md).

    Args:
        confidence: of the mask, in [0, 1].
        coverage: share of its pixels that masks of the same class of the other method cover, in [0, 1].
    """
    return confidence * (CONTRADICTED + (1 - CONTRADICTED) * coverage)


def visible(masks: Iterable[tuple[PlacedMask, bool, bool]], size: tuple[int, int]) -> Iterator[PlacedMask]:
    """Yield what remains of each mask, which may be nothing.

    Args:
        masks: from front to back: mask, whether masks in front cover it, and whether it covers those behind.
        size: (H, W) of the image.
    """
    covered = np.zeros(size, bool)
    for mask, cut, covers in masks:
        yield PlacedMask(mask.pixels & ~covered[mask.place], mask.left, mask.top) if cut else mask
        if covers:
            mask.paint(covered, True)
