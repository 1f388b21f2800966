"""Write rendered scenes as a data set, in the layout of `datasets/scenes.yaml`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ovseg_batch import scenes

JPEG_QUALITY = 92
SEEDS = "seeds.csv"


def write_scenes(folder: Path, seeds: Iterable[int], jpeg_every: int = 2) -> int:
    """Render scenes into `folder/images` (PNG, every `jpeg_every`-th a JPEG) and `folder/truth`. Return their number.

    The ground truth of image NAME is NAME.classes.png (indices into `scenes.CLASSES`) and NAME.instances.png (0 =
    stuff). `truth/seeds.csv` lists the seeds of the scenes, so that they can be rendered again without some objects.
    """
    for part in ("images", "truth"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    count, lines = 0, ["file_name,seed"]
    for count, seed in enumerate(seeds, start=1):
        scene = scenes.render(seed)
        name = f"scene-{count:05d}{'.jpg' if jpeg_every and count % jpeg_every == 0 else '.png'}"
        Image.fromarray(scene.image).save(folder / "images" / name, quality=JPEG_QUALITY)
        Image.fromarray(scene.classes).save(folder / "truth" / f"{name}.classes.png")
        Image.fromarray(scene.instances).save(folder / "truth" / f"{name}.instances.png")
        lines.append(f"{name},{seed}")
    (folder / "truth" / SEEDS).write_text("\n".join(lines) + "\n")
    return count


def read_seeds(folder: Path) -> dict[str, int]:
    """Return image name → seed for the scenes that `write_scenes` wrote into `folder`. Empty if there are none."""
    path = folder / "truth" / SEEDS
    lines = path.read_text().splitlines()[1:] if path.is_file() else []
    return {name: int(seed) for name, _, seed in (line.rpartition(",") for line in lines)}
