#!/usr/bin/env python
"""Draw docs/demo.png: scenes, the dense prediction, the refined masks, the truth."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from ovseg_batch import pipeline, scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.scenes import paint, write_scenes
from ovseg_batch.export.rows import finished_rows
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.store import StageStore, Workdir

Array = np.ndarray[Any, Any]

GAP, SIDE = 8, 256


def colours() -> Array:
    """(classes + 1, 3) uint8; the last is for pixels without a class."""
    hues = (np.arange(len(scenes.CLASSES)) * 179 * 0.618) % 180
    hsv = np.stack([hues, 150 + 60 * (np.arange(len(hues)) % 2), 235 - 60 * (np.arange(len(hues)) % 3 == 2)], 1)
    rgb = cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0]
    return np.vstack([rgb, [[255, 255, 255]]]).astype(np.uint8)


def overlay(image: Array, labels: Array) -> Array:
    """The label map over a faded picture, with dark edges between classes."""
    mixed = 0.25 * image + 0.75 * colours()[labels]
    small = cv2.morphologyEx(labels.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    mixed[small > 0] *= 0.35
    return mixed.astype(np.uint8)


def predictions(root: Path, method: str) -> dict[str, Array]:
    """File name → label map of a run over `root/images`."""
    flags = {"labels": list(scenes.CLASSES), "refine.method": method, "refine.output": "semantic"}
    workdir = Workdir(root / "run")
    pipeline.run([str(root / "images")], workdir, load_config(flags=flags, environment={}), progress=False)
    stage = workdir.read_plan()["stages"][-1]
    store = StageStore(workdir.root / "stages" / stage["folder"], stage["name"], stage["fingerprint"])
    return {name: paint(line) for name, line in finished_rows(Manifest.open(workdir.manifest), store)}


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
