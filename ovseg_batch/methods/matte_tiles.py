"""Split a large image into overlapping tiles for a matting network, and blend the mattes of the tiles.

The tiles lie on a grid whose coordinates are multiples of the network's padding, so that its patches fall on the same
pixels in every tile. Near an edge that cuts through the image, a tile has no weight, because the network sees zeros
beyond the edge there; then its weight rises linearly. A network that looks no farther than `MARGIN` therefore gives the
same matte with tiles as without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ovseg_batch.types.arrays import Numbers, Pixels

TILE = 1024  # pixels a side
OVERLAP = 256  # least pixels that neighbouring tiles share
MARGIN = 64  # pixels along an inner edge of a tile that have no weight
GRID = 32  # tiles begin at multiples of this
UNKNOWN = 128  # value of a trimap where the network computes alpha

Tile = tuple[slice, slice]


def tiles_of(trimap: Pixels) -> list[Tile]:
    """Return the tiles in which a network must compute alpha.

    Args:
        trimap: (H, W) uint8; `UNKNOWN` where alpha is to be computed.

    Returns:
        Rows and columns of each tile. An image of at most `TILE` pixels a side is one tile. Without an unknown pixel
        that a tile has weight for, there is none.
    """
    rows, columns = (_starts(side) for side in trimap.shape)
    tiles = []
    for top in rows:
        for left in columns:
            tile = tuple(
                slice(start, min(start + TILE, side)) for start, side in zip((top, left), trimap.shape, strict=True)
            )
            inner = tuple(_inner(part, side) for part, side in zip(tile, trimap.shape, strict=True))
            if (trimap[inner] == UNKNOWN).any():
                tiles.append((tile[0], tile[1]))
    return tiles


def blended(mattes: Sequence[Numbers], tiles: Sequence[Tile], shape: tuple[int, int]) -> Numbers:
    """Blend the mattes of tiles.

    Args:
        mattes: (h, w) float32 in [0, 1] of each tile.
        tiles: result of `tiles_of`.
        shape: (H, W) of the image.

    Returns:
        (H, W) float32. It is valid at the unknown pixels of the trimap.
    """
    if len(tiles) == 1 and mattes[0].shape == shape:
        return mattes[0]
    totals = [np.zeros(side, np.float32) for side in shape]
    for total in totals:
        for start in _starts(len(total)):
            total[start : start + TILE] += _weight(slice(start, min(start + TILE, len(total))), len(total))
    result = np.zeros(shape, np.float32)
    for matte, (rows, columns) in zip(mattes, tiles, strict=True):
        down, across = (
            _weight(part, len(total)) / np.maximum(total[part], np.finfo(np.float32).tiny)
            for part, total in zip((rows, columns), totals, strict=True)
        )
        result[rows, columns] += matte * down[:, None] * across
    return result


def _starts(side: int) -> list[int]:
    """Return where the tiles of an axis begin."""
    if side <= TILE:
        return [0]
    last = -(-(side - TILE) // GRID) * GRID
    return [*range(0, last, TILE - OVERLAP), last]


def _inner(part: slice, side: int) -> slice:
    """Return the pixels of a tile along an axis that have a weight."""
    return slice(part.start + MARGIN * (part.start > 0), part.stop - MARGIN * (part.stop < side))


def _weight(part: slice, side: int) -> Numbers:
    """Return the weights of a tile's pixels along an axis: 0 in the margin, then rising to 1."""
    ramp = OVERLAP - 2 * MARGIN
    place = np.arange(part.stop - part.start, dtype=np.float32) + 0.5
    weight = np.ones_like(place)
    if part.start > 0:
        weight = np.minimum(weight, (place - MARGIN) / ramp)
    if part.stop < side:
        weight = np.minimum(weight, (place[::-1] - MARGIN) / ramp)
    return np.asarray(weight.clip(0, 1), np.float32)
