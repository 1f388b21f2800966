"""Rendered scenes as a data set: the images and their truth on disk, and a finished run held against it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovseg_batch import scenes
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.metrics import SemanticScore
from ovseg_batch.io import rle

Array = np.ndarray[Any, Any]

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


def score_run(rows: Iterable[tuple[str, dict[str, Any]]], truth: Path) -> SemanticScore:
    """Hold the masks of a finished run against the truth of its scenes.

    Args:
        rows: file name and refine row of every image.
        truth: the folder that `write_scenes` filled.

    Raises:
        UsageError: the truth of an image is not there.
    """
    score = SemanticScore(len(scenes.CLASSES))
    for name, line in rows:
        path = truth / f"{name}.classes.png"
        if not path.is_file():
            raise UsageError(f"There is no truth {path}; --root is the folder that has images/ and truth/.")
        score.add(paint(line), np.asarray(Image.open(path)))
    return score


def paint(line: dict[str, Any]) -> Array:
    """The label map (H, W) int16 of one refine row, -1 where no mask is."""
    labels = np.full((line["height"], line["width"]), -1, np.int16)
    for annotation in line["annotations"]:
        labels[rle.decode(annotation["rle"], *labels.shape)] = scenes.CLASSES.index(annotation["category"])
    return labels


def figures(score: SemanticScore) -> dict[str, float]:
    """mIoU over all, stuff and things, accuracy and boundary F1."""
    stuff = range(len(scenes.STUFF))
    things = range(len(scenes.STUFF), len(scenes.CLASSES))
    return {
        "mIoU": score.mean_iou(),
        "stuff": score.mean_iou(stuff),
        "things": score.mean_iou(things),
        "accuracy": score.accuracy(),
        "boundary F1": score.boundary_f1(),
    }
