"""Outlines of masks: along the edges of pixels, or through their centres; every hole bridged into one ring.

Two families of readers disagree about what a polygon's coordinates are. pycocotools fills what lies between them, so an
outline along the pixels' edges gives the mask back to the pixel. OpenCV's `fillPoly`, with which most others draw,
takes them for pixels and paints the outline too; for it an outline has to pass through the pixels' centres.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]
PAIRS = 1_000_000  # corners are compared with each other up to here

Ring = Array  # (N, 2) x, y; closed by returning to the first


def edge_rings(mask: Array, tolerance: float = 0.0) -> list[Ring]:
    """Outlines along the edges of pixels, for readers that fill as pycocotools does (even-odd, without the outline).

    Args:
        mask: (H, W) bool.
        tolerance: pixels by which the outline may be simplified (Douglas-Peucker); 0 gives the mask back exactly.

    Returns:
        One ring (N, 2) float64 for each part, in pixels with (0, 0) at the image's corner. A part with holes is one
        ring: outline and holes joined by bridges of no width.
    """
    if not mask.any():
        return []
    left, top, part = _cropped(mask)
    loops = [(loop, _signed_area(loop)) for loop in _edge_loops(part)]
    _, labels = cv2.connectedComponents(part.astype(np.uint8), connectivity=8)
    groups: dict[int, tuple[list[Ring], list[Ring]]] = {}
    for loop, area in loops:
        outlines, holes = groups.setdefault(_label_beside(loop, labels), ([], []))
        (outlines if area > 0 else holes).append(_simplified(loop, tolerance))
    rings = []
    for outlines, holes in groups.values():
        # Where parts touch at a corner it is not said whose hole a hole is; together they are right in any case.
        rings += [_bridged([*outlines, *holes])] if holes else outlines
    return [ring + np.array([left, top]) for ring in rings if len(ring) > 2]


def centre_ring(mask: Array, tolerance: float = 0.0) -> Ring:
    """One outline through the centres of the border's pixels, for readers that draw it with OpenCV's `fillPoly`.

    Args:
        mask: (H, W) bool.
        tolerance: as in `edge_rings`.

    Returns:
        (N, 2) float64 with x + 0.5 and y + 0.5 for the pixel (x, y), so that cutting off the fraction gives the pixel.
        Several parts and holes are joined by bridges; between parts a bridge paints a line one pixel wide.
    """
    if not mask.any():
        return np.zeros((0, 2))
    left, top, part = _cropped(mask)
    found, _ = cv2.findContours(part.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    loops = [_simplified(loop[:, 0].astype(np.float64), tolerance) for loop in found]
    ring: Ring = _bridged(sorted(loops, key=len, reverse=True)) + np.array([left + 0.5, top + 0.5])
    return ring


def _cropped(mask: Array) -> tuple[int, int, Array]:
    """x and y of a mask's box, and what is in it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return left, top, np.ascontiguousarray(mask[top : rows[-1] + 1, left : columns[-1] + 1])


def _edge_loops(mask: Array) -> list[Ring]:
    """Closed loops of corners with the mask on the same side throughout: outlines and holes turn opposite ways.

    Every stretch of horizontal border has two corners; in a column of corners, sorted by height, each pair of
    neighbours is joined by a vertical stretch. So two tables of partners are all there is to follow.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), np.int8)
    padded[1:-1, 1:-1] = mask
    border = np.diff(padded, axis=0)  # (H + 1, W + 2): +1 where the mask begins below, -1 where it ends
    starts = np.diff(border, axis=1, prepend=0) != 0  # a stretch begins or ends, or turns into its opposite
    y, x = np.nonzero(starts)
    before, after = border[y, np.maximum(x - 1, 0)], border[y, x]
    # A place where one stretch ends and the opposite one begins is two corners.
    ends, begins = before != 0, after != 0
    corner_y = np.concatenate([y[ends], y[begins]])
    corner_x = np.concatenate([x[ends], x[begins]]) - 1
    is_begin = np.concatenate([np.zeros(ends.sum(), bool), np.ones(begins.sum(), bool)])
    sign = np.concatenate([before[ends], after[begins]])
    count = len(corner_y)
    order = np.lexsort((is_begin, corner_x, corner_y))  # row by row; at one place an end comes before a begin
    beside = np.empty(count, np.int64)
    beside[order[0::2]], beside[order[1::2]] = order[1::2], order[0::2]
    upright = np.lexsort((corner_y, corner_x))
    above = np.empty(count, np.int64)
    above[upright[0::2]], above[upright[1::2]] = upright[1::2], upright[0::2]
    points = np.stack([corner_x, corner_y], axis=1).astype(np.float64)
    forward = is_begin == (sign > 0)  # walked from such a corner along its stretch, the mask is on the right
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
    """Pixels inside; negative for a hole."""
    x, y = loop.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _label_beside(loop: Ring, labels: Array) -> int:
    """The connected part that a loop of `_edge_loops` goes around or lies in: what is right of its first step."""
    (x, y), (end, _) = loop[:2].astype(int)
    return int(labels[y, x] if end > x else labels[y - 1, end])


def _simplified(loop: Ring, tolerance: float) -> Ring:
    if not tolerance or len(loop) < 4:
        return loop
    simple: Ring = cv2.approxPolyDP(loop.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(np.float64)
    return simple if len(simple) > 2 else loop


def _bridged(loops: list[Ring]) -> Ring:
    """One ring of all loops: each is walked from, and back to, the place of the ring that is next to it."""
    ring = loops[0]
    for loop in loops[1:]:
        here, there = _nearest(ring, loop)
        turned = np.concatenate([loop[there:], loop[: there + 1]])
        ring = np.concatenate([ring[: here + 1], turned, ring[here:]])
    return ring


def _nearest(ring: Ring, loop: Ring) -> tuple[int, int]:
    """Index of the two corners that are closest; for long loops, of those closest to one of their corners."""
    few = loop if len(ring) * len(loop) <= PAIRS else loop[:1]
    distances = ((ring[:, None] - few[None]) ** 2).sum(axis=2)
    here, there = np.unravel_index(distances.argmin(), distances.shape)
    return int(here), int(there)
