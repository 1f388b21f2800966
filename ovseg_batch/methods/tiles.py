"""Place crops of large images: around known objects for SAM2, or on a grid for a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[int, int, int, int]  # x0, y0, x1, y1

MARGIN = 0.1  # free space around an object, as a share of the tile
OVERLAP = 0.25  # least overlap of tiles on a grid, as a share of the tile


@dataclass(frozen=True, slots=True)
class View:
    """A crop of the image, in pixels, and the indices of the objects that are segmented in it."""

    box: Box
    members: tuple[int, ...]


def place_views(objects: Sequence[Box], size: tuple[int, int], tile: int | None) -> list[View]:
    """Return square views of `tile` pixels. Each is placed around an object, and also holds other objects that fit.

    Tiles on a fixed grid would cut objects, and the parts would have to be matched. Objects that are too large for a
    view use the whole image.

    Args:
        objects: boxes in pixels. Views are placed around earlier objects first.
        size: (H, W) of the image.
        tile: side of a view in pixels. None: the whole image is the only view.

    Returns:
        Every object in exactly one view.
    """
    height, width = size
    if tile is None or max(size) <= tile:
        return [View((0, 0, width, height), tuple(range(len(objects))))] if objects else []
    room = round(MARGIN * tile)
    free = list(range(len(objects)))
    views, whole = [], []
    while free:
        first = objects[free[0]]
        if max(first[2] - first[0], first[3] - first[1]) > tile - 2 * room:
            whole.append(free.pop(0))
            continue
        box = _around(first, size, tile)
        members = [k for k in free if _lies_in(objects[k], box, size, room)]
        views.append(View(box, tuple(members)))
        free = [k for k in free if k not in members]
    return views + ([View((0, 0, width, height), tuple(whole))] if whole else [])


def grid_views(size: tuple[int, int], tile: int | None) -> list[Box]:
    """Return the whole image, and then overlapping squares of `tile` pixels that cover it.

    An object smaller than the overlap lies in one of the squares without being cut.

    Args:
        size: (H, W) of the image.
        tile: side of a square in pixels. None, or at least the longer side of the image: the whole image alone.
    """
    height, width = size
    whole = (0, 0, width, height)
    if tile is None or max(size) <= tile:
        return [whole]
    tops, lefts = (_grid(side, tile) for side in size)
    return [whole, *((x, y, min(x + tile, width), min(y + tile, height)) for y in tops for x in lefts)]


def is_cut(box: Box, view: Box, size: tuple[int, int]) -> bool:
    """Return whether a box in a view reaches an edge of the view that is no edge of the image (H, W)."""
    edges = (0, 0, size[1], size[0])
    return any(box[side] == view[side] != edges[side] for side in range(4))


def _grid(side: int, tile: int) -> list[int]:
    """Return where tiles begin along a side, at equal distances."""
    room = max(0, side - tile)
    steps = int(np.ceil(room / (tile * (1 - OVERLAP))))
    return [round(k * room / steps) for k in range(steps + 1)] if steps else [0]


def _around(box: Box, size: tuple[int, int], tile: int) -> Box:
    height, width = size
    x = min(max((box[0] + box[2] - tile) // 2, 0), max(width - tile, 0))
    y = min(max((box[1] + box[3] - tile) // 2, 0), max(height - tile, 0))
    return x, y, min(x + tile, width), min(y + tile, height)


def _lies_in(box: Box, view: Box, size: tuple[int, int], room: int) -> bool:
    """Return whether the view holds the box with `room` pixels around it, except at the border of the image."""
    ends = (0, 0, size[1], size[0])
    spare = [0 if view[side] == ends[side] else room for side in range(4)]
    return (
        box[0] >= view[0] + spare[0]
        and box[1] >= view[1] + spare[1]
        and box[2] <= view[2] - spare[2]
        and box[3] <= view[3] - spare[3]
    )
