"""The stuff of the scenes: eight textures, drawn from noise.

Every texture maps (height, width, rng) to (height, width, 3) float32 RGB in [0, 255].
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from ovseg_batch.types.arrays import Floats, Numbers

Texture = Callable[[int, int, np.random.Generator], Floats]


def noise(h: int, w: int, cell: float, rng: np.random.Generator, stretch: tuple[float, float] = (1, 1)) -> Floats:
    """Return smooth noise (h, w) in about [-1, 1] with blobs of `cell` pixels, stretched by (vertical, horizontal)."""
    gh = max(2, round(h / (cell * stretch[0])) + 2)
    gw = max(2, round(w / (cell * stretch[1])) + 2)
    grid = rng.uniform(-1, 1, (gh, gw)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)


def _shade(colour: tuple[float, float, float], value: Floats, strength: float) -> Floats:
    return np.asarray(colour, np.float32) * (1 + strength * value[..., None])


def _mix(low: Floats, high: Floats, share: Numbers) -> Floats:
    return np.asarray(low + (high - low) * share[..., None], np.float32)


def _jitter(colour: tuple[int, int, int], rng: np.random.Generator, by: float = 0.12) -> tuple[float, float, float]:
    r, g, b = np.asarray(colour) * rng.uniform(1 - by, 1 + by) * rng.uniform(1 - by / 2, 1 + by / 2, 3)
    return float(r), float(g), float(b)


def sky(h: int, w: int, rng: np.random.Generator) -> Floats:
    top = np.asarray(_jitter((50, 115, 205), rng), np.float32)
    horizon = np.asarray(_jitter((165, 205, 240), rng, 0.06), np.float32)
    ramp = np.linspace(0, 1, h, dtype=np.float32)[:, None, None] ** rng.uniform(0.7, 1.5)
    blue = np.broadcast_to(top + (horizon - top) * ramp, (h, w, 3))
    clouds = noise(h, w, 60, rng, (0.6, 1.2)) + 0.5 * noise(h, w, 22, rng) + 0.25 * noise(h, w, 8, rng)
    share = np.clip((clouds - rng.uniform(0.0, 0.7)) * 1.6, 0, 0.95)
    return _mix(blue, np.full((h, w, 3), 250, np.float32), share)


def grass(h: int, w: int, rng: np.random.Generator) -> Floats:
    blades = noise(h, w, 2.2, rng, (6, 1)) + 0.6 * noise(h, w, 4, rng, (4, 1)) + 0.3 * noise(h, w, 30, rng)
    low = np.asarray(_jitter((40, 100, 22), rng), np.float32)
    high = np.asarray(_jitter((112, 178, 58), rng), np.float32)
    return _mix(low, high, np.clip(blades * 0.45 + 0.5, 0, 1))


def water(h: int, w: int, rng: np.random.Generator) -> Floats:
    ys = np.arange(h, dtype=np.float32)[:, None]
    period = rng.uniform(9, 18)
    bend = period * (0.9 * noise(h, w, 28, rng) + 0.5 * noise(h, w, 12, rng))
    wave = np.sin(2 * np.pi * (ys + bend) / period)
    low = np.asarray(_jitter((18, 72, 135), rng), np.float32)
    high = np.asarray(_jitter((60, 150, 190), rng), np.float32)
    return _mix(low, high, np.clip(wave * 0.5 + 0.5, 0, 1) ** 2.2)


def sand(h: int, w: int, rng: np.random.Generator) -> Floats:
    grain = 0.5 * noise(h, w, 2, rng) + 0.45 * noise(h, w, 7, rng) + 0.3 * noise(h, w, 26, rng)
    return _shade(_jitter((208, 174, 112), rng, 0.08), grain, 0.17)


def road(h: int, w: int, rng: np.random.Generator) -> Floats:
    surface = _shade(_jitter((84, 82, 86), rng, 0.15), 0.7 * noise(h, w, 1.6, rng) + 0.4 * noise(h, w, 9, rng), 0.14)
    angle = rng.uniform(-0.35, 0.35)
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    across = (ys - rng.uniform(0, 1) * h) * np.cos(angle) - (xs - w / 2) * np.sin(angle)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    spacing = rng.uniform(55, 90)
    lane = np.abs((across + spacing / 2) % spacing - spacing / 2) < rng.uniform(1.6, 2.8)
    dash = (along % rng.uniform(28, 40)) < 17
    paint = (232, 190, 50) if rng.random() < 0.4 else (225, 225, 220)
    surface[lane & dash] = paint
    return surface


def snow(h: int, w: int, rng: np.random.Generator) -> Floats:
    drift = 0.6 * noise(h, w, 34, rng) + 0.35 * noise(h, w, 11, rng) + 0.15 * noise(h, w, 2, rng)
    low = np.asarray(_jitter((200, 205, 222), rng, 0.04), np.float32)
    return _mix(low, np.asarray((248, 249, 253), np.float32), np.clip(drift * 0.6 + 0.55, 0, 1))


def brick(h: int, w: int, rng: np.random.Generator) -> Floats:
    bh, bw = rng.uniform(9, 15), rng.uniform(22, 34)
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    row = np.floor(ys / bh)
    shifted = xs / bw + 0.5 * (row % 2)
    column = np.floor(shifted)
    tone = rng.uniform(-1, 1, (64, 64)).astype(np.float32)
    value = tone[row.astype(int) % 64, column.astype(int) % 64] + 0.6 * noise(h, w, 2.5, rng)
    wall = _shade(_jitter((168, 66, 52), rng), value, 0.16)
    joint = ((ys % bh) < 1.7) | ((shifted % 1) * bw < 1.7)
    wall[joint] = _jitter((205, 190, 178), rng, 0.05)
    return wall


def wood(h: int, w: int, rng: np.random.Generator) -> Floats:
    upright = bool(rng.random() < 0.4)
    height, width = (w, h) if upright else (h, w)
    plank = rng.uniform(18, 34)
    ys, _ = np.mgrid[0:height, 0:width].astype(np.float32)
    tone = rng.uniform(-1, 1, 64).astype(np.float32)[np.floor(ys / plank).astype(int) % 64]
    rings = np.sin(ys * 0.9 + 5 * noise(height, width, 14, rng, (1, 6)))
    grain = 0.5 * tone + 0.45 * rings + 0.5 * noise(height, width, 2, rng, (1, 14))
    planks = _shade(_jitter((138, 94, 52), rng), grain, 0.2)
    planks[(ys % plank) < 1.5] *= 0.45
    return np.ascontiguousarray(planks.transpose(1, 0, 2)) if upright else planks


TEXTURES: dict[str, Texture] = {
    "sky": sky,
    "grass": grass,
    "water": water,
    "sand": sand,
    "road": road,
    "snow": snow,
    "brick": brick,
    "wood": wood,
}
