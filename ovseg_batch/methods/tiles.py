"""Which parts of a large image SAM2 looks at closely, so that no object lies across the edge of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[int, int, int, int]  # x0, y0, x1, y1

MARGIN = 0.1  # of a tile, to be free around an object


@dataclass(frozen=True, slots=True)
class View:
    """A part of the image, in pixels of it, and the indices of the objects that are looked at there."""

    box: Box
    members: tuple[int, ...]


def place_views(objects: Sequence[Box], size: tuple[int, int], tile: int | None) -> list[View]:
    """Square views of `tile` pixels, each around an object and whatever else lies in it with room to spare.

    Tiles on a fixed grid cut objects in two, and the halves must be matched again; a view that is put where the object
    is has no such seam. What is too large for a view is looked at in the whole image.

    Args:
        objects: boxes in pixels; earlier ones choose where views lie.
        size: (H, W) of the image.
        tile: side of a view; None: the whole image is the only one.

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


def _around(box: Box, size: tuple[int, int], tile: int) -> Box:
    height, width = size
    x = min(max((box[0] + box[2] - tile) // 2, 0), max(width - tile, 0))
    y = min(max((box[1] + box[3] - tile) // 2, 0), max(height - tile, 0))
    return x, y, min(x + tile, width), min(y + tile, height)


def _lies_in(box: Box, view: Box, size: tuple[int, int], room: int) -> bool:
    """Whether the view holds the box with room around it; where the view ends with the image none is needed."""
    ends = (0, 0, size[1], size[0])
    spare = [0 if view[side] == ends[side] else room for side in range(4)]
    return (
        box[0] >= view[0] + spare[0]
        and box[1] >= view[1] + spare[1]
        and box[2] <= view[2] - spare[2]
        and box[3] <= view[3] - spare[3]
    )
