"""Compose textures and things to a scene, with its class and instance maps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np

from ovseg_batch.scenes.textures import TEXTURES, noise
from ovseg_batch.scenes.things import THINGS, Sprite, draw
from ovseg_batch.types.arrays import Floats, Indices, Pixels

STUFF = tuple(TEXTURES)
THING_NAMES = tuple(THINGS)
CLASSES = STUFF + THING_NAMES

TRAIN_SEEDS = range(0, 1_000_000_000)
DEMO_SEEDS = range(1_000_000_000, 2_000_000_000)
HELD_OUT_SEEDS = range(2_000_000_000, 3_000_000_000)

NATURAL_STUFF = {
    "tree": "grass",
    "house": "grass",
    "car": "road",
    "boat": "water",
    "fish": "water",
    "flower": "grass",
    "mushroom": "grass",
    "balloon": "sky",
    "sun": "sky",
    "cat": "wood",
    "ball": "sand",
    "person": "road",
}
# share of things on their natural stuff; a higher share would let a model infer classes from positions
NATURAL_SHARE = 1 / 3
SHADOW = 0.38  # share of the light that the darkest part of a shadow absorbs
MIN_VISIBLE = 30  # pixels; things with a smaller visible area are not listed


@dataclass(frozen=True, slots=True)
class Thing:
    """The visible part of a thing. `instance` is its value in the instance map; `bbox` is x, y, w, h in pixels."""

    instance: int
    name: str
    colour: str
    bbox: tuple[int, int, int, int]
    area: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        classes: (H, W) uint8, indices into `CLASSES`.
        instances: (H, W) uint8, 0 for stuff.
        things: the visible things.
    """

    seed: int
    image: Pixels
    classes: Pixels
    instances: Pixels
    things: tuple[Thing, ...]


@dataclass(frozen=True, slots=True)
class Cutout:
    """The contribution of things to a scene.

    Attributes:
        alpha: (H, W) float32 in [0, 1], their share of each pixel.
        colour: (H, W, 3) float32 in [0, 255], their colour on black, without grain.
    """

    alpha: Floats
    colour: Floats


@dataclass(frozen=True, slots=True)
class _Placed:
    name: str
    sprite: Sprite
    left: int
    top: int


def render(seed: int, without: Collection[int] = ()) -> Scene:
    """Render the scene of a seed; about 10 ms.

    Args:
        seed: any non-negative integer.
        without: instance numbers of things to omit. Everything else stays equal.
    """
    image, classes, placed = _prepare(seed)
    instances = np.zeros(classes.shape, np.uint8)
    for number, thing in enumerate(placed, start=1):
        if number not in without:
            shadow, opacity = _masks_of(thing, *classes.shape)
            _paste(thing, shadow, opacity, image)
            covered = opacity > 0.5
            classes[covered] = CLASSES.index(thing.name)
            instances[covered] = number
    pixels = _finish(image, np.random.default_rng([seed, 3]))
    return Scene(seed, pixels, classes, instances, _visible(placed, instances))


def cut_out(seed: int, numbers: Collection[int]) -> Cutout:
    """Return the true alpha and colour of things of a scene, by instance number."""
    background, classes, placed = _prepare(seed)
    alpha, colour = np.zeros(classes.shape, np.float32), np.zeros_like(background)
    for number, thing in enumerate(placed, start=1):
        shadow, opacity = _masks_of(thing, *classes.shape)
        chosen = number in numbers
        alpha = alpha * (1 - opacity) + (opacity if chosen else 0)
        colour *= (1 - SHADOW * shadow)[..., None]
        colour *= (1 - opacity)[..., None]
        if chosen:
            sheet = np.zeros_like(colour)
            _paste(thing, np.zeros_like(shadow), opacity, sheet)
            colour += sheet
    rng = np.random.default_rng([seed, 3])
    light, hue, sigma = _light(classes.shape, rng)
    parts = [alpha, colour * light * hue]
    if sigma > 0.3:
        parts = [np.asarray(cv2.GaussianBlur(part, (0, 0), sigma), np.float32) for part in parts]
    return Cutout(*parts)


def _prepare(seed: int) -> tuple[Floats, Pixels, list[_Placed]]:
    """Return the stuff of a scene, (H, W, 3) float32 and (H, W) uint8, and its things from back to front."""
    layout = np.random.default_rng([seed, 0])
    h, w = (int(v) for v in layout.integers(192, 257, 2))
    regions, names = _regions(h, w, layout)
    image = np.empty((h, w, 3), np.float32)
    classes = np.empty((h, w), np.uint8)
    for index, name in enumerate(names):
        inside = regions == index
        image[inside] = TEXTURES[name](h, w, np.random.default_rng([seed, 1, index]))[inside]
        classes[inside] = STUFF.index(name)
    return image, classes, [_place(seed, n, classes, layout) for n in range(1, _count(layout) + 1)]


def _regions(h: int, w: int, rng: np.random.Generator) -> tuple[Indices, list[str]]:
    """Return the region of each pixel, separated by wavy lines, and the stuff of each region."""
    count = int(rng.choice([1, 2, 3], p=[0.2, 0.5, 0.3]))
    names = [STUFF[k] for k in rng.permutation(len(STUFF))[:count]]
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    angle = rng.normal(0, 0.25) + (np.pi / 2 if rng.random() < 0.2 else 0)
    across = (ys / h - 0.5) * np.cos(angle) + (xs / w - 0.5) * np.sin(angle)
    wave = 0.05 * noise(h, w, 60, rng) + (0.03 * noise(h, w, 20, rng) if rng.random() < 0.5 else 0)
    cuts = np.sort(rng.uniform(-0.3, 0.3, count - 1))
    if count == 3:
        cuts = np.array([rng.uniform(-0.3, -0.1), rng.uniform(0.1, 0.3)])
    regions = np.zeros((h, w), np.int64)
    for cut in cuts:
        regions += across + wave > cut
    if "sky" in names and rng.random() < 0.7:  # the sky is mostly at the top
        names.insert(0, names.pop(names.index("sky")))
    return regions, names


def _count(rng: np.random.Generator) -> int:
    return int(rng.choice(7, p=[0.08, 0.16, 0.2, 0.2, 0.16, 0.12, 0.08]))


def _place(seed: int, number: int, classes: Pixels, layout: np.random.Generator) -> _Placed:
    rng = np.random.default_rng([seed, 2, number])
    h, w = classes.shape
    name = THING_NAMES[int(rng.integers(len(THING_NAMES)))]
    radius = float(np.exp(rng.uniform(np.log(15), np.log(42))))
    sprite = draw(name, radius, float(rng.uniform(-25, 25)), rng)
    x, y = int(rng.integers(w)), int(rng.integers(h))
    on_natural_stuff = np.argwhere(classes[::4, ::4] == STUFF.index(NATURAL_STUFF[name]))
    if len(on_natural_stuff) and rng.random() < NATURAL_SHARE:
        y, x = (int(v) * 4 for v in on_natural_stuff[int(rng.integers(len(on_natural_stuff)))])
    margin = int(radius * 0.6)
    x, y = int(np.clip(x, margin, w - margin)), int(np.clip(y, margin, h - margin))
    size = sprite.alpha.shape[0]
    return _Placed(name, sprite, x - size // 2, y - size // 2)


def _window(left: int, top: int, size: int, h: int, w: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of the image that a square covers, and the same part of the square."""
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + size, h), min(left + size, w)
    if y1 <= y0 or x1 <= x0:
        return (slice(0, 0), slice(0, 0)), (slice(0, 0), slice(0, 0))
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _masks_of(thing: _Placed, h: int, w: int) -> tuple[Floats, Floats]:
    """Return the darkness of a thing's shadow and its opacity, (H, W) float32 each, in [0, 1]."""
    alpha = thing.sprite.alpha
    size = alpha.shape[0]
    offset = max(1, size // 18)
    shadow, opacity = np.zeros((h, w), np.float32), np.zeros((h, w), np.float32)
    on_image, on_sprite = _window(thing.left + offset, thing.top + offset, size, h, w)
    shadow[on_image] = cv2.GaussianBlur(alpha, (0, 0), max(1.0, size / 22))[on_sprite]
    on_image, on_sprite = _window(thing.left, thing.top, size, h, w)
    opacity[on_image] = alpha[on_sprite]
    return shadow, opacity


def _paste(thing: _Placed, shadow: Floats, opacity: Floats, image: Floats) -> None:
    image *= (1 - SHADOW * shadow)[..., None]
    on_image, on_sprite = _window(thing.left, thing.top, thing.sprite.alpha.shape[0], *opacity.shape)
    share = opacity[on_image][..., None]
    image[on_image] = image[on_image] * (1 - share) + thing.sprite.rgb[on_sprite] * share


def _light(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Floats, Floats, float]:
    """Return factors of the pixels, (H, W, 1) and (3,) float32, and the standard deviation of the blur."""
    h, w = shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[-0.5 : 0.5 : h * 1j, -0.5 : 0.5 : w * 1j].astype(np.float32)
    light = rng.uniform(0.86, 1.1) + rng.uniform(0, 0.28) * (ys * np.sin(angle) + xs * np.cos(angle))
    hue = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    return light[..., None].astype(np.float32), hue, float(rng.uniform(0, 0.9))


def _finish(image: Floats, rng: np.random.Generator) -> Pixels:
    """Apply light, hue, blur and grain to the whole scene."""
    light, hue, sigma = _light(image.shape, rng)
    image = image * light * hue
    if sigma > 0.3:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)
    image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 6))
    pixels: Pixels = np.clip(image, 0, 255).astype(np.uint8)
    return pixels


def _visible(placed: list[_Placed], instances: Pixels) -> tuple[Thing, ...]:
    things = []
    for number, thing in enumerate(placed, start=1):
        mask = (instances == number).astype(np.uint8)
        area = int(mask.sum())
        if area >= MIN_VISIBLE:
            x, y, w, h = cv2.boundingRect(mask)
            things.append(Thing(number, thing.name, thing.sprite.colour, (x, y, w, h), area))
    return tuple(things)
