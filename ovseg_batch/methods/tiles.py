"""Place crops of large images for SAM2 so that no object crosses the edge of its crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[int, int, int, int]  # x0, y0, x1, y1

MARGIN = 0.1  # free space around an object, as a share of the tile


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
