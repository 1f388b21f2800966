"""What tests on emulated GPUs share: the environment of a process that sees them, and small images."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PATHS = (ROOT / "tests" / "support" / "emulated_gpu", ROOT, ROOT / "scripts" / "benchmark")
SIDE = 128  # pixels; the embedded models' own size


def emulated_environment(gpus: int = 2, **more: str) -> dict[str, str]:
    """Return the environment of a process that sees so many emulated GPUs."""
    paths = os.pathsep.join([*map(str, PATHS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "EMULATED_GPUS": str(gpus), **more}


def write_crops(scenes: Path, folder: Path, count: int) -> Path:
    """Write the middle of the first scenes into a new folder, and return it."""
    folder.mkdir()
    for file in sorted(scenes.iterdir())[:count]:
        with Image.open(file) as image:
            x, y = (image.width - SIDE) // 2, (image.height - SIDE) // 2
            image.crop((x, y, x + SIDE, y + SIDE)).save(folder / f"{file.stem}.png")
    return folder
