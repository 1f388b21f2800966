"""The things of the scenes: twelve sprites, drawn from parts, each with a common colour and rarer ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ovseg_batch.types.arrays import AnyArray

Colour = tuple[int, int, int]

CANVAS = 224  # side in pixels of the square on which a sprite is drawn before it is scaled down
REACH = 1.12  # half the canvas in sprite units: shapes live in [-1, 1]
_SHIFT = 4  # sub-pixel bits of OpenCV's drawing functions

BLACK: Colour = (25, 22, 24)
WHITE: Colour = (246, 246, 242)


class Pen:
    """Draws filled shapes in sprite units, x right and y down, on an RGB canvas with opacity."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rgb = np.zeros((CANVAS, CANVAS, 3), np.uint8)
        self.alpha = np.zeros((CANVAS, CANVAS), np.uint8)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        scaled = (np.asarray(points) / REACH + 1) * (CANVAS / 2) * (1 << _SHIFT)
        corners = [np.round(scaled).astype(np.int32)]
        cv2.fillPoly(self.rgb, corners, colour, cv2.LINE_AA, _SHIFT)
        cv2.fillPoly(self.alpha, corners, (255,), cv2.LINE_8, _SHIFT)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: Colour,
        angle: float = 0,
        start: float = 0,
        end: float = 360,
    ) -> None:
        turn = np.deg2rad(np.linspace(start, end, 48))
        px, py = rx * np.cos(turn), ry * np.sin(turn)
        a = np.deg2rad(angle)
        around = list(zip(x + px * np.cos(a) - py * np.sin(a), y + px * np.sin(a) + py * np.cos(a), strict=True))
        if end - start < 360:
            around.append((x, y))
        self.polygon(around, colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def bar(self, x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour) -> None:
        length = float(np.hypot(x1 - x0, y1 - y0)) or 1.0
        nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
        self.polygon([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)], colour)


@dataclass(frozen=True, slots=True)
class Sprite:
    """A drawn thing: `rgb` (S, S, 3) float32 in [0, 255], `alpha` (S, S) float32 in [0, 1], and its colour word."""

    rgb: AnyArray
    alpha: AnyArray
    colour: str


def _pick(rng: np.random.Generator, palette: dict[str, Colour]) -> tuple[str, Colour]:
    """Return a random colour: the first with probability 1/2, otherwise one of the others."""
    names = list(palette)
    if len(names) == 1 or rng.random() < 0.5:
        return names[0], palette[names[0]]
    name = names[int(rng.integers(1, len(names)))]
    return name, palette[name]


def _darker(colour: Colour, by: float = 0.7) -> Colour:
    r, g, b = (round(c * by) for c in colour)
    return r, g, b


def tree(pen: Pen) -> str:
    name, leaf = _pick(pen.rng, {"green": (38, 122, 48), "orange": (214, 120, 34), "yellow": (214, 184, 52)})
    bark: Colour = (102, 68, 40)
    if pen.rng.random() < 0.4:
        pen.box(-0.12, 0.5, 0.12, 1.0, bark)
        for k, (y, half) in enumerate([(0.6, 0.75), (0.15, 0.6), (-0.3, 0.42)]):
            pen.polygon([(-half, y), (half, y), (0, y - 0.72)], _darker(leaf, 0.8 + 0.1 * k))
    else:
        pen.polygon([(-0.14, 1.0), (0.14, 1.0), (0.09, 0.1), (-0.09, 0.1)], bark)
        for x, y, r in [
            (-0.45, -0.05, 0.42),
            (0.45, -0.05, 0.42),
            (0, -0.45, 0.52),
            (-0.2, 0.05, 0.42),
            (0.25, 0.05, 0.4),
        ]:
            pen.ellipse(x, y, r, r * 0.95, _darker(leaf, pen.rng.uniform(0.82, 1.1)))
        for _ in range(9):
            x, y = pen.rng.uniform(-0.5, 0.5), pen.rng.uniform(-0.7, 0.2)
            pen.ellipse(x, y, 0.1, 0.09, _darker(leaf, pen.rng.uniform(0.65, 1.2)))
    return name


def house(pen: Pen) -> str:
    name, roof = _pick(pen.rng, {"red": (182, 44, 40), "brown": (108, 70, 52), "grey": (104, 104, 112)})
    wall = [(226, 204, 172), (232, 228, 220), (206, 178, 140)][int(pen.rng.integers(3))]
    pen.box(-0.72, -0.15, 0.72, 0.9, wall)
    pen.box(0.34, -0.85, 0.55, -0.2, _darker(roof, 0.75))
    pen.polygon(
        [(-0.98, -0.1), (0.98, -0.1), (0.5, -0.82), (-0.5, -0.82)]
        if pen.rng.random() < 0.5
        else [(-0.98, -0.1), (0.98, -0.1), (0, -0.98)],
        roof,
    )
    pen.box(-0.14, 0.3, 0.2, 0.9, (98, 58, 36))
    for x in (-0.54, 0.34):
        pen.box(x, 0.1, x + 0.26, 0.42, (150, 206, 232))
        pen.bar(x + 0.13, 0.1, x + 0.13, 0.42, 0.04, WHITE)
    return name


def car(pen: Pen) -> str:
    name, paint = _pick(
        pen.rng,
        {
            "red": (206, 36, 40),
            "blue": (36, 84, 184),
            "yellow": (238, 198, 36),
            "white": (226, 228, 230),
            "green": (40, 130, 110),
        },
    )
    side = 1 if pen.rng.random() < 0.5 else -1

    def flip(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(side * x, y) for x, y in points]

    pen.polygon(
        flip(
            [
                (-1, 0.32),
                (-0.97, -0.02),
                (-0.62, -0.1),
                (-0.36, -0.5),
                (0.34, -0.5),
                (0.62, -0.1),
                (0.96, 0.02),
                (1, 0.32),
            ]
        ),
        paint,
    )
    pen.polygon(flip([(-0.5, -0.08), (-0.3, -0.4), (-0.04, -0.4), (-0.04, -0.08)]), (160, 208, 228))
    pen.polygon(flip([(0.04, -0.08), (0.04, -0.4), (0.29, -0.4), (0.49, -0.08)]), (160, 208, 228))
    pen.polygon(flip([(0.86, 0.02), (0.98, 0.05), (0.98, 0.15), (0.88, 0.14)]), (250, 232, 140))
    pen.bar(side * -0.9, 0.14, side * 0.8, 0.14, 0.04, _darker(paint))
    for x in (-0.56, 0.56):
        pen.ellipse(side * x, 0.34, 0.24, 0.24, BLACK)
        pen.ellipse(side * x, 0.34, 0.11, 0.11, (186, 188, 192))
    return name


def boat(pen: Pen) -> str:
    name, hull = _pick(pen.rng, {"brown": (112, 66, 36), "blue": (34, 58, 128), "red": (180, 46, 42)})
    sail = [(246, 244, 234), (240, 226, 190)][int(pen.rng.integers(2))]
    pen.bar(0, 0.5, 0, -0.98, 0.07, (86, 58, 40))
    pen.polygon([(0.07, -0.9), (0.07, 0.36), (0.72, 0.36)], sail)
    pen.polygon([(-0.07, -0.7), (-0.07, 0.36), (-0.56, 0.36)], _darker(sail, 0.9))
    pen.polygon([(-0.95, 0.42), (0.95, 0.42), (0.62, 0.88), (-0.66, 0.88)], hull)
    pen.polygon([(-0.95, 0.42), (0.95, 0.42), (0.88, 0.52), (-0.88, 0.52)], _darker(hull, 1.35))
    return name


def fish(pen: Pen) -> str:
    name, skin = _pick(pen.rng, {"orange": (242, 130, 26), "blue": (52, 92, 190), "grey": (150, 160, 170)})
    side = 1 if pen.rng.random() < 0.5 else -1
    pen.polygon([(side * -0.5, 0), (side * -1, -0.45), (side * -0.86, 0), (side * -1, 0.45)], _darker(skin, 0.85))
    pen.polygon([(side * -0.1, -0.35), (side * 0.3, -0.38), (side * -0.02, -0.66)], _darker(skin, 0.85))
    pen.polygon([(side * -0.05, 0.35), (side * 0.25, 0.36), (side * -0.02, 0.62)], _darker(skin, 0.85))
    pen.ellipse(side * 0.14, 0, 0.76, 0.45, skin)
    stripe: Colour = WHITE if name == "orange" else _darker(skin, 0.6)
    for x, half in [(-0.25, 0.33), (0.08, 0.42), (0.42, 0.38)]:
        pen.polygon(
            [(side * x, -half), (side * (x + 0.12), -half), (side * (x + 0.15), half), (side * (x - 0.02), half)],
            stripe,
        )
    pen.ellipse(side * 0.64, -0.1, 0.1, 0.1, WHITE)
    pen.ellipse(side * 0.66, -0.1, 0.055, 0.055, BLACK)
    return name


def flower(pen: Pen) -> str:
    name, petal = _pick(pen.rng, {"pink": (236, 92, 160), "purple": (140, 70, 190), "white": (244, 244, 244)})
    pen.bar(0, -0.1, 0.03, 1.0, 0.1, (46, 124, 44))
    pen.ellipse(-0.27, 0.66, 0.3, 0.12, (58, 146, 52), 28)
    pen.ellipse(0.29, 0.56, 0.3, 0.12, (58, 146, 52), -28)
    count = int(pen.rng.integers(5, 9))
    for k in range(count):
        turn = 2 * np.pi * k / count
        pen.ellipse(
            0.36 * np.cos(turn),
            -0.4 + 0.36 * np.sin(turn),
            0.3,
            0.19,
            _darker(petal, 0.92 + 0.08 * (k % 2)),
            np.rad2deg(turn),
        )
    pen.ellipse(0, -0.4, 0.19, 0.19, (246, 204, 48))
    return name


def mushroom(pen: Pen) -> str:
    name, cap = _pick(pen.rng, {"red": (202, 30, 32), "brown": (150, 100, 56)})
    pen.polygon([(-0.22, -0.1), (0.22, -0.1), (0.3, 0.95), (-0.3, 0.95)], (238, 228, 208))
    pen.ellipse(0, 0.02, 0.96, 0.92, cap, 0, 180, 360)
    pen.ellipse(0, 0.03, 0.96, 0.13, _darker(cap, 0.75))
    spot: Colour = WHITE if name == "red" else (196, 152, 104)
    for x, y, r in [
        (-0.5, -0.28, 0.15),
        (0.02, -0.6, 0.16),
        (0.5, -0.3, 0.15),
        (-0.05, -0.2, 0.12),
        (-0.3, -0.6, 0.08),
        (0.33, -0.62, 0.08),
    ]:
        pen.ellipse(x, y, r, r * 0.85, spot)
    return name


def balloon(pen: Pen) -> str:
    stripes: dict[str, tuple[Colour, Colour]] = {
        "red": ((208, 40, 36), (242, 202, 48)),
        "blue": ((34, 78, 178), (236, 226, 90)),
        "purple": ((116, 52, 150), (230, 140, 60)),
    }
    name, _ = _pick(pen.rng, {key: pair[0] for key, pair in stripes.items()})
    dark, light = stripes[name]
    pen.bar(-0.4, 0.1, -0.15, 0.72, 0.035, (90, 66, 44))
    pen.bar(0.4, 0.1, 0.15, 0.72, 0.035, (90, 66, 44))
    pen.polygon([(-0.52, 0.0), (0.52, 0.0), (0.16, 0.46), (-0.16, 0.46)], dark)
    pen.ellipse(0, -0.32, 0.66, 0.66, dark)
    for half in (0.46, 0.17):
        pen.ellipse(0, -0.32, half, 0.66, light if half > 0.3 else dark)
        pen.polygon(
            [(-half * 0.8, 0.02), (half * 0.8, 0.02), (half * 0.25, 0.46), (-half * 0.25, 0.46)],
            light if half > 0.3 else dark,
        )
    pen.box(-0.19, 0.68, 0.19, 0.98, (134, 92, 50))
    return name


def sun(pen: Pen) -> str:
    name, disc = _pick(pen.rng, {"yellow": (252, 214, 40), "orange": (246, 160, 34)})
    count = int(pen.rng.integers(10, 15))
    for k in range(count):
        turn = 2 * np.pi * k / count
        width = 0.2
        pen.polygon(
            [
                (0.55 * np.cos(turn - width), 0.55 * np.sin(turn - width)),
                (0.98 * np.cos(turn), 0.98 * np.sin(turn)),
                (0.55 * np.cos(turn + width), 0.55 * np.sin(turn + width)),
            ],
            _darker(disc, 0.95),
        )
    pen.ellipse(0, 0, 0.62, 0.62, disc)
    pen.ellipse(-0.12, -0.14, 0.34, 0.34, (255, 236, 130))
    return name


def cat(pen: Pen) -> str:
    name, fur = _pick(
        pen.rng, {"orange": (232, 142, 58), "grey": (124, 122, 128), "black": (52, 48, 54), "white": (238, 236, 232)}
    )
    for side in (-1, 1):
        pen.polygon([(side * 0.82, -0.9), (side * 0.86, -0.1), (side * 0.18, -0.52)], fur)
        pen.polygon([(side * 0.72, -0.7), (side * 0.74, -0.26), (side * 0.36, -0.5)], (226, 150, 150))
    pen.ellipse(0, 0.12, 0.88, 0.74, fur)
    for x in (-0.2, 0, 0.2):
        pen.bar(x, -0.58, x * 0.8, -0.3, 0.07, _darker(fur, 0.62))
    for side in (-1, 1):
        pen.ellipse(side * 0.36, 0.02, 0.17, 0.16, (196, 222, 84) if name != "white" else (92, 160, 220))
        pen.ellipse(side * 0.36, 0.02, 0.06, 0.14, BLACK)
        for y in (0.3, 0.42):
            pen.bar(side * 0.3, 0.36, side * 0.8, y + 0.02, 0.03, (60, 56, 58) if name != "black" else (190, 188, 190))
    pen.polygon([(-0.1, 0.24), (0.1, 0.24), (0, 0.36)], (222, 110, 124))
    pen.bar(0, 0.36, -0.14, 0.5, 0.045, _darker(fur, 0.5))
    pen.bar(0, 0.36, 0.14, 0.5, 0.045, _darker(fur, 0.5))
    return name


def ball(pen: Pen) -> str:
    triples: dict[str, tuple[Colour, Colour, Colour]] = {
        "red": ((216, 40, 44), (246, 246, 242), (36, 88, 196)),
        "green": ((46, 158, 80), (246, 246, 242), (242, 196, 40)),
    }
    name, _ = _pick(pen.rng, {key: colours[0] for key, colours in triples.items()})
    pen.ellipse(0, 0, 0.92, 0.92, WHITE)
    offset = float(pen.rng.uniform(0, 60))
    for k in range(6):
        pen.ellipse(0, 0, 0.92, 0.92, triples[name][k % 3] if k % 2 == 0 else WHITE, offset, 60 * k, 60 * k + 60)
    pen.ellipse(0, 0, 0.16, 0.16, WHITE)
    return name


def person(pen: Pen) -> str:
    name, shirt = _pick(
        pen.rng, {"blue": (40, 84, 196), "red": (196, 44, 44), "green": (48, 142, 66), "yellow": (230, 184, 50)}
    )
    skin = [(240, 196, 162), (140, 92, 62), (96, 62, 44)][int(pen.rng.integers(3))]
    trousers = [(46, 52, 92), (70, 62, 58)][int(pen.rng.integers(2))]
    for side in (-1, 1):
        pen.bar(side * 0.3, -0.16, side * 0.62, 0.3, 0.2, shirt)
        pen.ellipse(side * 0.64, 0.36, 0.11, 0.11, skin)
        pen.bar(side * 0.17, 0.4, side * 0.2, 0.92, 0.25, trousers)
        pen.ellipse(side * 0.24, 0.93, 0.18, 0.08, BLACK)
    pen.polygon([(-0.38, -0.24), (0.38, -0.24), (0.32, 0.48), (-0.32, 0.48)], shirt)
    pen.ellipse(0, -0.58, 0.33, 0.37, skin)
    pen.ellipse(0, -0.68, 0.35, 0.3, (54, 36, 26), 0, 180, 360)
    for side in (-1, 1):
        pen.ellipse(side * 0.12, -0.56, 0.045, 0.05, BLACK)
    pen.bar(-0.1, -0.4, 0.1, -0.4, 0.04, (150, 56, 56))
    return name


THINGS: dict[str, Callable[[Pen], str]] = {
    "tree": tree,
    "house": house,
    "car": car,
    "boat": boat,
    "fish": fish,
    "flower": flower,
    "mushroom": mushroom,
    "balloon": balloon,
    "sun": sun,
    "cat": cat,
    "ball": ball,
    "person": person,
}


def draw(name: str, radius: float, degrees: float, rng: np.random.Generator) -> Sprite:
    """Draw a thing so that sprite units of 1 are `radius` pixels, turned by `degrees`."""
    pen = Pen(rng)
    colour = THINGS[name](pen)
    turn = cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), degrees, 1 / 1.18)  # keeps the corners on the canvas
    size = max(8, round(2 * radius * REACH * 1.18))
    rgb, alpha = (cv2.warpAffine(part, turn, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR) for part in (pen.rgb, pen.alpha))
    method = cv2.INTER_AREA if size < CANVAS else cv2.INTER_LINEAR
    # Colours are premultiplied before scaling. Otherwise the black around a sprite would change its edge.
    weight = alpha.astype(np.float32) / 255
    small_weight = np.asarray(cv2.resize(weight, (size, size), interpolation=method), np.float32)
    small = cv2.resize(rgb.astype(np.float32) * weight[..., None], (size, size), interpolation=method)
    return Sprite(small / np.maximum(small_weight, 1e-3)[..., None], small_weight, colour)
