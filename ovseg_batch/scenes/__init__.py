"""A toy world that renders itself: labelled scenes whose truth is known to the pixel.

Each scene has one to three regions of stuff and up to six things, with shadow, light, blur and noise, and is a function
of its seed alone. Training, demonstration and held-out evaluation draw their seeds from ranges that never meet.
"""

from ovseg_batch.scenes.captions import caption
from ovseg_batch.scenes.render import (
    CLASSES,
    DEMO_SEEDS,
    HELD_OUT_SEEDS,
    STUFF,
    THING_NAMES,
    TRAIN_SEEDS,
    Cutout,
    Scene,
    Thing,
    cut_out,
    render,
)

__all__ = [
    "CLASSES",
    "DEMO_SEEDS",
    "HELD_OUT_SEEDS",
    "STUFF",
    "THING_NAMES",
    "TRAIN_SEEDS",
    "Cutout",
    "Scene",
    "Thing",
    "caption",
    "cut_out",
    "render",
]
