"""A few thousand rendered scenes on disk, shared by the trainings, so that rendering costs no training time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovseg_batch import scenes

Array = np.ndarray[Any, Any]

SIDE = 256
DEV_SCENES = 40  # the last ones of the pool are looked at while training and never trained on


@dataclass(frozen=True, slots=True)
class Pool:
    """Scenes padded to SIDE × SIDE: `images` uint8 RGB, `classes`, `instances`, and `sizes` (n, 2) of what is real."""

    images: Array
    classes: Array
    instances: Array
    sizes: Array
    colours: list[dict[str, str]]

    @property
    def train(self) -> int:
        return len(self.sizes) - DEV_SCENES


def open_pool(folder: Path, count: int, first_seed: int = 0) -> Pool:
    """Render the pool into `folder` unless it is there, and map it into memory."""
    done = folder / f"pool-{first_seed}-{count}.npz"
    shapes = {"images": (count, SIDE, SIDE, 3), "classes": (count, SIDE, SIDE), "instances": (count, SIDE, SIDE)}
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        maps = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
            for name, shape in shapes.items()
        }
        sizes = np.zeros((count, 2), np.int64)
        colours = []
        for k in range(count):
            scene = scenes.render(scenes.TRAIN_SEEDS[first_seed + k])
            h, w = scene.classes.shape
            maps["images"][k, :h, :w] = scene.image
            maps["classes"][k, :h, :w] = scene.classes
            maps["instances"][k, :h, :w] = scene.instances
            sizes[k] = h, w
            colours.append("|".join(f"{t.instance}:{t.name}:{t.colour}" for t in scene.things))
        for part in maps.values():
            part.flush()
        np.savez(done, sizes=sizes, colours=np.array(colours))
    record = np.load(done)
    opened = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
    of_scene = [
        {name: colour for _, name, colour in (part.split(":") for part in text.split("|") if part)}
        for text in record["colours"].tolist()
    ]
    return Pool(sizes=record["sizes"], colours=of_scene, **opened)
