"""Requests to the inpainting pipeline's UNet, drawn from the pool of scenes.

Three things, each under fitting words. What was behind a thing, or behind all of them: the scene is rendered again
without, and the pixels outside the mask stay those with the things' shadows. A thing, upright and as large as the mask
allows. And a stretch of stuff. Crops are cut around a mask as the edit stage cuts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from demo_models.pool import Pool
from ovseg_batch import scenes
from ovseg_batch.scenes.things import Sprite, draw

Array = np.ndarray[Any, Any]

SIDE = 96  # pixels the pipeline works at
SPRITE = 60.0  # pixels, the radius at which things are drawn
MIN_SIDE = 8  # pixels a side of a thing that is still one
EMPTY = 0.1  # share of examples without words, for guidance
BEHIND = "background"  # the prompt of the edit stage for removing a thing


@dataclass(frozen=True, slots=True)
class Example:
    """`image` (SIDE, SIDE, 3) uint8 is to come out; of it and `seen` only what lies outside `mask` is shown."""

    image: Array
    seen: Array
    mask: Array
    words: str


@dataclass(frozen=True, slots=True)
class Behind:
    """The pool's scenes (n, 256, 256, 3) `without` one thing, `taken` (n,), 0 where there is none; `bare` of things."""

    without: Array
    taken: Array
    bare: Array


def open_behind(folder: Path, pool: Pool) -> Behind:
    """Render what is behind the things of the pool into `folder`, unless it is there."""
    count = len(pool.sizes)
    without, taken, bare = (folder / f"{name}-{count}.npy" for name in ("without", "taken", "bare"))
    if not taken.exists():
        rng = np.random.default_rng(7)
        which = np.array([_any_of(instances, rng) for instances in pool.instances], np.uint8)
        _render(without, pool, [[int(number)] for number in which])
        np.save(taken, which)
    if not bare.exists():
        _render(bare, pool, [range(1, 256)] * count)
    return Behind(np.load(without, mmap_mode="r"), np.load(taken), np.load(bare, mmap_mode="r"))


def _any_of(instances: Array, rng: np.random.Generator) -> int:
    """One of the things that are seen, 0 where there is none."""
    present = np.flatnonzero(np.bincount(instances.ravel())[1:]) + 1
    return int(rng.choice(present)) if len(present) else 0


def _render(path: Path, pool: Pool, without: Sequence[Collection[int]]) -> None:
    partial = path.with_suffix(".part")
    stored = np.lib.format.open_memmap(partial, "w+", np.uint8, pool.images.shape)
    for k, numbers in enumerate(without):
        scene = scenes.render(scenes.TRAIN_SEEDS[k], without=numbers)
        h, w = scene.classes.shape
        stored[k, :h, :w] = scene.image
    stored.flush()
    partial.replace(path)


class Examples:
    """Draws requests to the UNet."""

    def __init__(self, pool: Pool, behind: Behind, chosen: range) -> None:
        self._pool, self._behind = pool, behind
        self.chosen, self._side = chosen, SIDE
        self._sprites = draw_sprites()
        self._kinds = ((0.1, self.behind), (0.35, self.bare), (0.94, self._thing), (1.0, self._stuff))

    def draw(self, rng: np.random.Generator, side: int = SIDE) -> Example:
        self._side = side
        while True:
            k = int(rng.integers(self.chosen.start, self.chosen.stop))
            number = rng.random()
            make = next(make for until, make in self._kinds if number < until)
            found = make(k, rng)
            if found is not None:
                return found

    def behind(self, k: int, rng: np.random.Generator) -> Example | None:
        """The scene without the thing that was taken away."""
        image, classes, instances = self._scene(k)
        silhouette = instances == self._behind.taken[k]
        if not self._behind.taken[k] or silhouette.sum() < 30:
            return None
        mask = _widened(silhouette, rng, boxes=0.2)
        around = np.unique(classes[_wider(mask, 7) > mask])
        stuff = [scenes.CLASSES[c] for c in around if c < len(scenes.STUFF)]
        words = BEHIND if rng.random() < 0.7 or not stuff else " and ".join(stuff)
        wanted = self._laid_in(image, mask, self._behind.without[k])
        return self._cut(wanted, image, mask, mask, words, rng)

    def bare(self, k: int, rng: np.random.Generator) -> Example | None:
        """The scene without any thing, cut around one of them."""
        image, _, instances = self._scene(k)
        one = _any_of(instances, rng)
        if not one:
            return None
        mask = _widened(instances > 0, rng, boxes=0)
        wanted = self._laid_in(image, mask, self._behind.bare[k])
        return self._cut(wanted, image, mask, _widened(instances == one, rng, boxes=0), BEHIND, rng)

    def _laid_in(self, image: Array, mask: Array, behind: Array) -> Array:
        h, w = mask.shape
        return np.where(mask[..., None] > 0, behind[:h, :w], image)

    def _thing(self, k: int, rng: np.random.Generator) -> Example | None:
        """A thing where there is none, or another: upright, whole, as large as the mask's box has room for."""
        image, _, instances = self._scene(k)
        one = _any_of(instances, rng)
        mask = _box(image.shape, rng)
        if one and rng.random() < 0.6:
            mask = _widened(instances == one, rng, boxes=0.7)
        name = scenes.THING_NAMES[int(rng.integers(len(scenes.THING_NAMES)))]
        colours = list(self._sprites[name])
        with_colour = rng.random() < 0.3
        colour = colours[int(rng.integers(len(colours)))] if with_colour else colours[0]
        words = ("{}", "a {}", "a photo of a {}")[int(rng.integers(3))].format(
            f"{colour} {name}" if with_colour else name
        )
        ground = self._laid_in(image, mask, self._behind.bare[k])
        wanted = _with_sprite(ground, mask, self._sprites[name][colour], int(rng.integers(4, 9)))
        return None if wanted is None else self._cut(wanted, image, mask, mask, words, rng)

    def _stuff(self, k: int, rng: np.random.Generator) -> Example | None:
        """A stretch of stuff, all of it or a piece."""
        image, classes, instances = self._scene(k)
        here = np.flatnonzero(np.bincount(classes[instances == 0]))
        kind = int(rng.choice(here))
        mask = (classes == kind).astype(np.uint8)
        if rng.random() < 0.6:
            h, w = mask.shape
            piece = np.zeros_like(mask)
            centre, axes = rng.uniform((0, 0), (w, h)), rng.uniform(12, 60, 2)
            spin = float(rng.uniform(0, 180))
            cv2.ellipse(piece, [int(v) for v in centre], [int(v) for v in axes], spin, 0, 360, 1, -1)
            mask &= piece
        if mask.sum() < 150:
            return None
        words = ("{}", "a photo of {}")[int(rng.integers(2))].format(scenes.CLASSES[kind])
        return self._cut(image, image, mask, mask, words, rng)

    def _scene(self, k: int) -> tuple[Array, Array, Array]:
        h, w = self._pool.sizes[k]
        return self._pool.images[k, :h, :w], self._pool.classes[k, :h, :w], self._pool.instances[k, :h, :w]

    def _cut(
        self, image: Array, seen: Array, mask: Array, middle: Array, words: str, rng: np.random.Generator
    ) -> Example:
        """The square around `middle`."""
        h, w = mask.shape
        x, y, bw, bh = cv2.boundingRect(middle)
        side = int(np.clip(max(bw, bh) * rng.uniform(1.25, 2.2), 64, min(h, w)))
        left = int(np.clip(x + bw / 2 - side / 2 + rng.uniform(-0.1, 0.1) * side, 0, w - side))
        top = int(np.clip(y + bh / 2 - side / 2 + rng.uniform(-0.1, 0.1) * side, 0, h - side))
        parts = [part[top : top + side, left : left + side] for part in (image, seen, mask)]
        how = cv2.INTER_AREA if side > self._side else cv2.INTER_CUBIC
        size = (self._side, self._side)
        a, b = (cv2.resize(np.ascontiguousarray(part), size, interpolation=how) for part in parts[:2])
        m = cv2.resize(parts[2], size, interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            a, b, m = a[:, ::-1], b[:, ::-1], m[:, ::-1]
        return Example(a, b, m, "" if rng.random() < EMPTY else words)


def draw_sprites() -> dict[str, dict[str, Sprite]]:
    """Name → colour → the thing upright, its common colour first. What is always alike is learnt in minutes."""
    drawn: dict[str, dict[str, Sprite]] = {}
    for name in scenes.THING_NAMES:
        found = [draw(name, SPRITE, 0.0, np.random.default_rng(seed)) for seed in range(60)]
        common = Counter(sprite.colour for sprite in found).most_common()
        drawn[name] = {colour: next(s for s in found if s.colour == colour) for colour, _ in common}
    return drawn


def _with_sprite(image: Array, mask: Array, sprite: Sprite, margin: int) -> Array | None:
    """The image with a sprite in the middle of the mask's box; None where the box is too small for one."""
    left, top, width, height = cv2.boundingRect((sprite.alpha > 0).astype(np.uint8))
    x, y, w, h = cv2.boundingRect(mask)
    scale = min((w - 2 * margin) / width, (h - 2 * margin) / height)
    sw, sh = round(width * scale), round(height * scale)
    if min(sw, sh) < MIN_SIDE:
        return None
    part = slice(top, top + height), slice(left, left + width)
    light = sprite.rgb * sprite.alpha[..., None]
    alpha, light = (cv2.resize(a[part], (sw, sh), interpolation=cv2.INTER_AREA) for a in (sprite.alpha, light))
    y, x = y + (h - sh) // 2, x + (w - sw) // 2
    at = slice(y, y + sh), slice(x, x + sw)
    inside = mask[at][..., None] > 0
    out = image.copy()
    out[at] = np.where(inside, np.rint(image[at] * (1 - alpha[..., None]) + light), image[at])
    return out


def _box(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A box somewhere in a picture, of the sizes that things have."""
    h, w = shape[:2]
    radius = np.exp(rng.uniform(np.log(14), np.log(42)))
    bh, bw = (int(2 * radius * rng.uniform(0.6, 1) + 16) for _ in range(2))
    top, left = (int(rng.integers(-extent // 4, length - 3 * extent // 4)) for extent, length in ((bh, h), (bw, w)))
    mask = np.zeros((h, w), np.uint8)
    mask[max(0, top) : top + bh, max(0, left) : left + bw] = 1
    return mask


def _wider(mask: Array, margin: int) -> Array:
    away = cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_3)
    return np.asarray(away <= margin).astype(np.uint8)


def _widened(silhouette: Array, rng: np.random.Generator, boxes: float) -> Array:
    """A mask around a thing: its silhouette 4 to 12 pixels wider, or a box or an ellipse around it."""
    mask = silhouette.astype(np.uint8)
    margin = int(rng.integers(4, 13))
    if rng.random() >= boxes:
        return _wider(mask, margin)
    x, y, w, h = cv2.boundingRect(mask)
    wide = np.zeros_like(mask)
    if rng.random() < 0.7:
        wide[max(0, y - margin) : y + h + margin, max(0, x - margin) : x + w + margin] = 1
        return wide
    centre, axes = (x + w // 2, y + h // 2), (int(w * 0.71) + margin // 2, int(h * 0.71) + margin // 2)
    cv2.ellipse(wide, centre, axes, 0, 0, 360, 1, -1)
    return wide | mask
