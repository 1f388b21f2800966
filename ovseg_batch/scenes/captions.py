"""Captions of scenes and of rectangles in scenes."""

from __future__ import annotations

import numpy as np

from ovseg_batch.scenes.render import CLASSES, STUFF, Scene

LARGE = 64 * 48  # pixels; in rectangles up to this area, only classes that fill a large share are named


def caption(scene: Scene, rng: np.random.Generator, box: tuple[int, int, int, int] | None = None) -> str:
    """Return a sentence that names the classes inside `box` (y0, x0, y1, x1; None: the whole scene).

    A class is named if it covers at least 2 % of a large rectangle or 20 % of a small one.
    """
    y0, x0, y1, x1 = box or (0, 0, *scene.classes.shape)
    classes = scene.classes[y0:y1, x0:x1]
    share = np.bincount(classes.ravel(), minlength=len(CLASSES)) / classes.size
    named = [CLASSES[k] for k in np.argsort(-share) if share[k] >= (0.02 if classes.size > LARGE else 0.2)]
    inside = set(np.unique(scene.instances[y0:y1, x0:x1]).tolist())
    colours = {thing.name: thing.colour for thing in scene.things if thing.instance in inside}
    return sentence(named or [CLASSES[int(share.argmax())]], colours, rng)


def sentence(named: list[str], colours: dict[str, str], rng: np.random.Generator) -> str:
    """Return a sentence with these classes. Things sometimes have their colour."""
    things = [n for n in named if n not in STUFF]
    stuff = [n for n in named if n in STUFF]
    phrases = [_article(f"{colours[n]} {n}" if n in colours and rng.random() < 0.4 else n) for n in things]
    if phrases and stuff:
        link = ("on", "in front of", "and", "with")[int(rng.integers(4))]
        text = f"{_listed(phrases)} {link} {_listed(stuff)}"
    else:
        text = _listed(phrases or stuff)
    frame = ("a photo of {}.", "{}.", "a picture of {}.", "there is {} in the scene.")[int(rng.integers(4))]
    return frame.format(text)


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _listed(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
