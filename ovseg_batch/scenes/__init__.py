"""Render synthetic scenes with exact ground truth.

Each scene has one to three regions of stuff and up to six things, with shadow, light, blur and noise. It depends only
on its seed. Training, demonstration and held-out evaluation use disjoint ranges of seeds.
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
