"""Rendered scenes as a data set on disk: the layout that `datasets/scenes.yaml` names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ovseg_batch import scenes

JPEG_QUALITY = 92


def write_scenes(folder: Path, seeds: Iterable[int], jpeg_every: int = 2) -> int:
    """Render scenes into `folder/images` (PNG, every `jpeg_every`-th a JPEG) and `folder/truth`; how many.

    The truth of image NAME is NAME.classes.png (an index into `scenes.CLASSES`) and NAME.instances.png (0 = stuff).
    """
    for part in ("images", "truth"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    count = 0
    for count, seed in enumerate(seeds, start=1):
        scene = scenes.render(seed)
        name = f"scene-{count:05d}{'.jpg' if jpeg_every and count % jpeg_every == 0 else '.png'}"
        Image.fromarray(scene.image).save(folder / "images" / name, quality=JPEG_QUALITY)
        Image.fromarray(scene.classes).save(folder / "truth" / f"{name}.classes.png")
        Image.fromarray(scene.instances).save(folder / "truth" / f"{name}.instances.png")
    return count
