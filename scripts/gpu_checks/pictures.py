"""Pictures of a chosen size, tiled from rendered scenes and enlarged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ovseg_batch import scenes

Array = np.ndarray[Any, Any]

SEEDS = scenes.HELD_OUT_SEEDS[8200:]
TILE, ACROSS, DOWN = 128, 4, 3  # pixels a side of a scene; scenes of a picture
SCENES = 24  # rendered once, and arranged anew for every picture


def write_pictures(folder: Path, count: int, width: int, height: int, seed: int = 0) -> None:
    """Write JPEG files of `width` × `height` pixels, each of twelve scenes in a random order."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tiles = [cv2.resize(scenes.render(number).image, (TILE, TILE)) for number in SEEDS[:SCENES]]
    for number in range(count):
        order = rng.choice(SCENES, ACROSS * DOWN, replace=False)
        rows = [np.hstack([tiles[k] for k in order[row * ACROSS : (row + 1) * ACROSS]]) for row in range(DOWN)]
        picture = cv2.resize(np.vstack(rows), (width, height), interpolation=cv2.INTER_LINEAR)
        Image.fromarray(picture).save(folder / f"{number:04d}.jpg", quality=92)
