#!/usr/bin/env python
"""Draw docs/demo.png: scenes, the dense prediction, the refined masks, the truth."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from ovseg_batch import datasets, scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.evaluate.score import paint
from ovseg_batch.evaluate.sheet import overlay
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.results import finished_images
from ovseg_batch.workdir.store import Workdir

Array = np.ndarray[Any, Any]

GAP, SIDE = 8, 256


def predictions(root: Path, method: str) -> dict[str, Array]:
    """File name → label map of a run over `root/images`."""
    flags = {"labels": list(scenes.CLASSES), "refine.method": method, "refine.output": "semantic"}
    workdir = Workdir(root / "run")
    pipeline.run([str(root / "images")], workdir, load_config("demo", flags=flags, environment={}), progress=False)
    store = workdir.stores()[-1]
    return {
        image.row.file_name: paint(image, datasets.load("scenes"))
        for image in finished_images(Manifest.open(workdir.manifest), store)
    }


@click.command()
@click.option("--out", default="docs/demo.png", type=click.Path(path_type=Path), show_default=True)
@click.option("--rows", default=4, show_default=True)
@click.option("--first", default=7, show_default=True, help="The first of the demo's scenes to draw.")
def main(out: Path, rows: int, first: int) -> None:
    """Run the job twice, dense alone and refined, and put the pictures side by side."""
    seeds = scenes.DEMO_SEEDS[first : first + rows]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_scenes(root, seeds, jpeg_every=0)
        dense, refined = (list(predictions(root, method).values()) for method in ("none", "prompted"))
    lines = []
    for k, scene in enumerate(map(scenes.render, seeds)):
        maps = (dense[k], refined[k], scene.classes.astype(int))
        tiles = [scene.image, *(overlay(scene.image, labels) for labels in maps)]
        tiles = [cv2.resize(tile, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for tile in tiles]
        lines.append(np.hstack([np.pad(t, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for t in tiles]))
    picture = np.vstack(lines)[:-GAP, :-GAP]
    cv2.imwrite(str(out), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    click.echo(out)


if __name__ == "__main__":
    main()
