"""Tiles for a matting network: cover, weights, and equality with one call for a filter as wide as the margin."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ovseg_batch.methods.matte_tiles import GRID, MARGIN, OVERLAP, TILE, UNKNOWN, blended, tiles_of
from ovseg_batch.methods.matting import band_width, soften, trimap
from ovseg_batch.types.arrays import DeepPixels, Mask, Numbers

SIZES = [(300, 1024), (1025, 200), (1500, 2600), (2700, 1030), (1056, 1799)]


def blob(height: int, width: int, seed: int = 0) -> Mask:
    """Return a mask of any shape that reaches the border of the image."""
    rng = np.random.default_rng(seed)
    small = rng.random((max(2, height // 150), max(2, width // 150))).astype(np.float32)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) > 0.5)


def test_a_trimap_is_unknown_where_alpha_may_be_soft() -> None:
    mask = blob(700, 900)
    known = trimap(mask, 7)
    away = np.arange(-7, 8)
    disc = (np.hypot(away[:, None], away) < 7.5).astype(np.uint8)
    bits = mask.astype(np.uint8)
    band = cv2.erode(bits, disc) != cv2.dilate(bits, disc)
    assert np.array_equal(known == UNKNOWN, band) and band.any()
    assert np.array_equal(known[~band], mask[~band] * np.uint8(255))
    assert set(np.unique(trimap(np.ones((50, 50), bool), 5))) == {255}


@pytest.mark.parametrize("size", SIZES)
def test_tiles_cover_the_unknown_part(size: tuple[int, int]) -> None:
    known = trimap(blob(*size), 9)
    tiles = tiles_of(known)
    assert len(tiles) > 1 or max(size) <= TILE
    ones = [np.ones((rows.stop - rows.start, columns.stop - columns.start), np.float32) for rows, columns in tiles]
    assert np.abs(blended(ones, tiles, size)[known == UNKNOWN] - 1).max() < 1e-6
    for tile in tiles:
        for part, side in zip(tile, size, strict=True):
            assert part.start % GRID == 0 and part.stop - part.start <= TILE and part.stop <= side
    assert tiles_of(np.full(size, 255, np.uint8)) == []


def test_tiles_without_an_unknown_pixel_are_left_out() -> None:
    known = np.zeros((3000, 3000), np.uint8)
    known[2900, 2900] = UNKNOWN
    [(rows, columns)] = tiles_of(known)
    assert rows.start <= 2900 < rows.stop and columns.start <= 2900 < columns.stop


@pytest.mark.parametrize("size", SIZES)
def test_a_local_filter_gives_the_same_in_tiles(size: tuple[int, int]) -> None:
    """Its radius is the margin: this is the widest filter for which the promise holds."""
    known, image = trimap(blob(*size), 9), np.random.default_rng(1).random(size).astype(np.float32)

    def filtered(part: Numbers) -> Numbers:
        side = (2 * MARGIN + 1,) * 2
        return np.asarray(cv2.boxFilter(part, -1, side, borderType=cv2.BORDER_CONSTANT))

    tiles = tiles_of(known)
    found = blended([filtered(image[tile]) for tile in tiles], tiles, size)
    unknown = known == UNKNOWN
    assert np.abs(found - filtered(image))[unknown].max() < 1e-5
    assert OVERLAP > 2 * MARGIN


@pytest.mark.parametrize("deep", [False, True])
def test_the_alpha_of_a_network_counts_in_the_band_alone(deep: bool) -> None:
    rng = np.random.default_rng(2)
    plain, mask = rng.integers(0, 256, (300, 400, 3)).astype(np.uint8), blob(300, 400)
    image: DeepPixels = plain.astype(np.uint16) * 257 if deep else plain
    given, top = rng.random(mask.shape).astype(np.float32), 65535 if deep else 255
    known = trimap(mask, 6)
    alpha, colours = soften(image, mask, 6, (given, known))
    band = known == UNKNOWN
    assert np.array_equal(alpha[band], np.rint(given * np.float32(top)).astype(image.dtype)[band])
    assert np.array_equal(alpha[~band], (mask * top)[~band])
    assert np.array_equal(colours[~band], image[~band])


def test_a_network_gets_a_wider_band() -> None:
    assert (band_width(3000, 4000), band_width(3000, 4000, network=True)) == (20, 80)
