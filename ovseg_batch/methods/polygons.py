"""Outlines of masks, along pixel edges or through pixel centres. Holes are joined to the outline by bridges.

Readers interpret the coordinates of polygons in two ways. pycocotools fills the area between them, so an outline along
pixel edges reproduces the mask exactly. Most other readers use OpenCV's `fillPoly`, which treats coordinates as pixels
and also paints the outline. They need an outline through the pixel centres.
"""

from __future__ import annotations

import cv2
import numpy as np

from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.types.arrays import Doubles, Integers, Mask

PAIRS = 1_000_000  # largest number of corner pairs that are all compared

Ring = Doubles  # (N, 2) x, y; the last corner connects to the first


def edge_rings(mask: PlacedMask, tolerance: float = 0.0) -> list[Ring]:
    """Return outlines along pixel edges, for readers that fill as pycocotools does (even-odd, without the outline).

    Args:
        mask: the mask in its bounding box.
        tolerance: tolerance of the simplification in pixels (Douglas-Peucker); 0 reproduces the mask exactly.

    Returns:
        One ring (N, 2) float64 for each part, in pixels with (0, 0) at the image's corner. A part with holes is one
        ring: outline and holes joined by bridges of no width.
    """
    if not mask.pixels.any():
        return []
    part = np.ascontiguousarray(mask.pixels)
    loops = [(loop, _signed_area(loop)) for loop in _edge_loops(part)]
    _, labels = cv2.connectedComponents(part.astype(np.uint8), connectivity=8)
    groups: dict[int, tuple[list[Ring], list[Ring]]] = {}
    for loop, area in loops:
        outlines, holes = groups.setdefault(_label_beside(loop, np.asarray(labels, np.int32)), ([], []))
        (outlines if area > 0 else holes).append(_simplified(loop, tolerance))
    rings = []
    for outlines, holes in groups.values():
        # Where parts touch at a corner, the owner of a hole is ambiguous, so these parts form one ring.
        rings += [_bridged([*outlines, *holes])] if holes else outlines
    return [ring + np.array([mask.left, mask.top]) for ring in rings if len(ring) > 2]


def edge_outlines(mask: PlacedMask, tolerance: float = 0.0) -> list[Ring]:
    """Return outlines and holes along pixel edges, as separate loops, for drawings with the even-odd rule.

    Args:
        mask: the mask in its bounding box.
        tolerance: as in `edge_rings`.

    Returns:
        One loop (N, 2) float64 for each outline and each hole, in pixels with (0, 0) at the image's corner.
    """
    if not mask.pixels.any():
        return []
    loops = (_simplified(loop, tolerance) for loop in _edge_loops(np.ascontiguousarray(mask.pixels)))
    return [loop + np.array([mask.left, mask.top]) for loop in loops]


def centre_ring(mask: PlacedMask, tolerance: float = 0.0) -> Ring:
    """Return one outline through the centres of the border pixels, for readers that use OpenCV's `fillPoly`.

    Args:
        mask: the mask in its bounding box.
        tolerance: as in `edge_rings`.

    Returns:
        (N, 2) float64: x + 0.5, y + 0.5 for the pixel (x, y), so that truncation returns the pixel. Parts and holes are
        joined by bridges. A bridge between parts is drawn as a line one pixel wide.
    """
    if not mask.pixels.any():
        return np.zeros((0, 2))
    found, _ = cv2.findContours(mask.pixels.astype(np.uint8, order="C"), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    loops = [_simplified(loop[:, 0].astype(np.float64), tolerance) for loop in found]
    ring: Ring = _bridged(sorted(loops, key=len, reverse=True)) + np.array([mask.left + 0.5, mask.top + 0.5])
    return ring


def _edge_loops(mask: Mask) -> list[Ring]:
    """Return closed loops of corners. Outlines and holes turn in opposite directions.

    Every horizontal border segment has two corners. In a column of corners, sorted by y, consecutive pairs are joined
    by vertical segments. The loops follow these two tables of neighbours.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), np.int8)
    padded[1:-1, 1:-1] = mask
    border = padded[1:] - padded[:-1]  # (H + 1, W + 2): +1 where the mask begins below, -1 where it ends
    y, x = np.divmod(np.flatnonzero(border[:, 1:] != border[:, :-1]), width + 1)
    x += 1  # a segment begins, ends, or changes its sign
    before, after = border[y, x - 1], border[y, x]
    # A point where one segment ends and the opposite one begins counts as two corners.
    ends, begins = before != 0, after != 0
    corner_y = np.concatenate([y[ends], y[begins]])
    corner_x = np.concatenate([x[ends], x[begins]]) - 1
    is_begin = np.concatenate([np.zeros(ends.sum(), bool), np.ones(begins.sum(), bool)])
    sign = np.concatenate([before[ends], after[begins]])
    count = len(corner_y)
    order = np.lexsort((is_begin, corner_x, corner_y))  # in raster order; at one point, ends come before begins
    beside = np.empty(count, np.int64)
    beside[order[0::2]], beside[order[1::2]] = order[1::2], order[0::2]
    upright = np.lexsort((corner_y, corner_x))
    above = np.empty(count, np.int64)
    above[upright[0::2]], above[upright[1::2]] = upright[1::2], upright[0::2]
    points = np.stack([corner_x, corner_y], axis=1).astype(np.float64)
    forward = is_begin == (sign > 0)  # following the segment from such a corner, the mask is on the right
    across, upwards, ahead = beside.tolist(), above.tolist(), forward.tolist()
    loops = []
    for first in np.flatnonzero(forward).tolist():
        loop, corner = list[int](), first
        while ahead[corner]:
            ahead[corner] = False
            loop += [corner, across[corner]]
            corner = upwards[across[corner]]
        if loop:
            loops.append(points[loop])
    return loops


def _signed_area(loop: Ring) -> float:
    """Return the enclosed area in pixels, negative for a hole."""
    x, y = loop.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _label_beside(loop: Ring, labels: Integers) -> int:
    """Return the label of the connected part that a loop bounds: the pixel to the right of its first edge."""
    (x, y), (end, _) = loop[:2].astype(int)
    return int(labels[y, x] if end > x else labels[y - 1, end])


def _simplified(loop: Ring, tolerance: float) -> Ring:
    if not tolerance or len(loop) < 4:
        return loop
    simple: Ring = cv2.approxPolyDP(loop.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(np.float64)
    return simple if len(simple) > 2 else loop


def _bridged(loops: list[Ring]) -> Ring:
    """Join loops to one ring. Each loop is connected to the nearest corner of the ring by a bridge."""
    ring = loops[0]
    for loop in loops[1:]:
        here, there = _nearest(ring, loop)
        turned = np.concatenate([loop[there:], loop[: there + 1]])
        ring = np.concatenate([ring[: here + 1], turned, ring[here:]])
    return ring


def _nearest(ring: Ring, loop: Ring) -> tuple[int, int]:
    """Return the indices of the closest pair of corners. For long loops, only one of their corners is compared."""
    few = loop if len(ring) * len(loop) <= PAIRS else loop[:1]
    distances = ((ring[:, None] - few[None]) ** 2).sum(axis=2)
    here, there = np.unravel_index(distances.argmin(), distances.shape)
    return int(here), int(there)
