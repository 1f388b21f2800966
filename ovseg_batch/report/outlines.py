"""Outlines of masks as data of SVG paths, because a page opened from the disk cannot read the pixels of images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ovseg_batch.io import rle
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.polygons import Ring, edge_outlines
from ovseg_batch.types import Annotation

SPACE = 2048  # longer side of the coordinates of larger images; it is that of the renditions
TOLERANCE = 0.75  # of the simplification, in units of the coordinates


def space_of(size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the coordinates for an image of (H, W) pixels."""
    scale = min(1.0, SPACE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def path_of(annotation: Annotation, size: tuple[int, int]) -> str:
    """Return the path of a mask of an image of (H, W) pixels, to be filled with the even-odd rule."""
    placed = rle.decode_placed(annotation.rle, *size)
    return path_data(edge_outlines(_reduced(placed, size, space_of(size)), TOLERANCE))


def path_data(loops: Sequence[Ring]) -> str:
    """Return loops as closed subpaths, with whole numbers and relative moves."""
    parts = []
    for loop in loops:
        points = np.rint(loop).astype(int)
        steps = np.diff(points, axis=0)
        steps = steps[steps.any(axis=1)]
        if len(steps) > 1:
            (x, y), moves = points[0].tolist(), steps.ravel().tolist()
            parts.append(f"M{x} {y}l{_joined(moves)}z")
    return "".join(parts)


def _joined(numbers: Sequence[int]) -> str:
    """Join numbers with as few separators as a path needs: a minus sign is one."""
    first, *others = map(str, numbers)
    return first + "".join(text if text.startswith("-") else f" {text}" for text in others)


def _reduced(placed: PlacedMask, size: tuple[int, int], space: tuple[int, int]) -> PlacedMask:
    """Return a mask at the scale of the coordinates. A mask of few pixels keeps at least one."""
    if space == size:
        return placed
    (down, across), (height, width) = (np.divide(space, size).tolist()), placed.pixels.shape
    shape = max(1, round(height * down)), max(1, round(width * across))
    pixels = placed.pixels.astype(np.uint8, order="C") * np.uint8(255)
    small = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)
    inside = np.asarray(small).reshape(shape) > 127
    if not inside.any():
        inside = np.asarray(small).reshape(shape) > 0
    return PlacedMask(inside, round(placed.left * across), round(placed.top * down))
