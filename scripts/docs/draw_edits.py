#!/usr/bin/env python
"""Draw what the edit stage makes of rendered scenes, with the embedded models.

draw_edits.py modes docs/edits.png       # a line a scene: the scene, and what each mode makes of it
draw_edits.py presets docs/presets.png   # a line a preset: before and after, twice
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from PIL import Image

from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.store import Workdir

Array = np.ndarray[Any, Any]

EMBEDDED = {"clip.model": "demo", "sam.model": "demo", "inpaint.model": "demo"}
GAP, SIDE = 6, 192  # pixels
FIRST = 7000  # of the held-out scenes
THINGS = scenes.THING_NAMES
NEXT = {name: f"a photo of a {following}" for name, following in zip(THINGS, (*THINGS[1:], THINGS[0]), strict=True)}


@dataclass(frozen=True, slots=True)
class Job:
    """A preset with words of the embedded models' world; shown are the first scenes with enough of `shows`."""

    preset: str
    shows: str
    labels: Sequence[str] = scenes.CLASSES
    more: Mapping[str, Any] = field(default_factory=dict)


JOBS = (
    Job("background-removal", "flower", more={"edit.keep": ["flower"]}),
    Job("remove-people", "person"),
    Job("replace-sky", "sky", more={"edit.prompt": "a photo of snow"}),
    Job("anonymise", "person", more={"edit.drop": ["person"]}),
)


@click.group()
def main() -> None:
    """Draw; see the module's first lines."""


@main.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--rows", default=6, show_default=True)
def modes(output: Path, rows: int) -> None:
    """The scene; cut out, blurred behind, erased, removed, the scene without; replaced by the next kind of thing."""
    keep, drop = {"edit.keep": list(THINGS)}, {"edit.drop": list(THINGS)}
    variants: list[Mapping[str, Any]] = [
        {"edit.mode": "cutout", **keep},
        {"edit.mode": "fill", "edit.fill.kind": "blur", **keep},
        {"edit.mode": "erase", **drop},
        {"edit.mode": "remove", **drop},
        {"edit.mode": "replace", "edit.prompts": NEXT, "edit.shape": "box", **drop},
    ]
    few = (seed for seed in scenes.HELD_OUT_SEEDS[FIRST:] if 2 <= len(scenes.render(seed).things) <= 4)
    seeds = [seed for seed, _ in zip(few, range(rows), strict=False)]
    with tempfile.TemporaryDirectory() as folder:
        columns = [_made(Path(folder), seeds, None, {"labels": list(scenes.CLASSES), **flags}) for flags in variants]
    pictures = [scenes.render(seed) for seed in seeds]
    bare = [scenes.render(s.seed, without=[thing.instance for thing in s.things]).image for s in pictures]
    _draw(output, list(zip([s.image for s in pictures], *columns[:4], bare, columns[4], strict=True)))


@main.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--pairs", default=3, show_default=True, help="Of before and after, in a line.")
def presets(output: Path, pairs: int) -> None:
    """What each of the four presets makes."""
    lines = []
    for job in JOBS:
        seeds = [seed for seed, _ in zip(_showing(job.shows), range(pairs), strict=False)]
        with tempfile.TemporaryDirectory() as folder:
            flags = {**EMBEDDED, "labels": list(job.labels), "background": [], **job.more}
            after = _made(Path(folder), seeds, Path(job.preset), flags)
        lines.append(
            [part for seed, made in zip(seeds, after, strict=True) for part in (scenes.render(seed).image, made)]
        )
    _draw(output, lines)


def _showing(name: str) -> Iterator[int]:
    """Held-out scenes with at least 6 % (stuff: 25 %) of `name`, and in which something else is seen as well."""
    number = scenes.CLASSES.index(name)
    least = 0.25 if name in scenes.STUFF else 0.06
    for seed in scenes.HELD_OUT_SEEDS[FIRST:]:
        share = np.mean(scenes.render(seed).classes == number)
        if least <= share < 0.7:
            yield seed


def _made(folder: Path, seeds: Sequence[int], preset: Path | None, flags: Mapping[str, Any]) -> list[Array]:
    """What a run with these settings leaves in `edited/`, in the order of the seeds."""
    if not (folder / "images").is_dir():
        write_scenes(folder, seeds, jpeg_every=0)
    workdir = Workdir(folder / "run")
    config = load_config(preset, ("edit.on_empty=copy",), flags, environment={})
    pipeline.run([str(folder / "images")], workdir, config, progress=False)
    return [_opaque(path) for path in sorted(workdir.edited.iterdir())]


def _opaque(path: Path) -> Array:
    """RGB, transparency on a chessboard."""
    image = Image.open(path).convert("RGBA")
    ys, xs = np.mgrid[: image.height, : image.width] // 12
    board = np.where((ys + xs) % 2, 255, 205).astype(np.uint8)
    behind = Image.fromarray(np.dstack([board] * 3)).convert("RGBA")
    return np.asarray(Image.alpha_composite(behind, image).convert("RGB"))


def _draw(output: Path, lines: Sequence[Sequence[Array]]) -> None:
    tiles = [[cv2.resize(tile, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for tile in line] for line in lines]
    framed = [np.hstack([np.pad(t, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for t in line]) for line in tiles]
    Image.fromarray(np.vstack(framed)[:-GAP, :-GAP]).save(output, optimize=True)
    click.echo(output)


if __name__ == "__main__":
    main()
