#!/usr/bin/env python
"""The edits held against rendered scenes, whose truth is known, as tables; and a sheet of pictures.

    scripts/eval_edits.py alpha --images 500     # hard masks, soft alpha, clean colours
    scripts/eval_edits.py removal                # the generator against OpenCV's fill
    scripts/eval_edits.py replacement            # is what was asked for named right?
    scripts/eval_edits.py sheet docs/edits.png   # what each mode makes

Everything runs as a person would run it, from the images on; what was computed before in --root is not again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from PIL import Image

from ovseg_batch import pipeline, scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.edits import edit_figures
from ovseg_batch.evaluate.scenes import read_seeds, write_scenes
from ovseg_batch.io.pictures import output_name
from ovseg_batch.store import Workdir

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).resolve().parent.parent
FIRST = 7000  # of the held-out scenes; settings were tried on those from 3,000 on
THINGS = scenes.THING_NAMES
SIDE = 160  # pixels of a picture on the sheet


class Bench:
    """Scenes and one workdir over them, in which the masks are computed once."""

    def __init__(self, root: Path, images: int, first: int) -> None:
        self.folder = root / f"{first}-{images}"
        if len(read_seeds(self.folder)) != images:
            write_scenes(self.folder, scenes.HELD_OUT_SEEDS[first : first + images])
        self.workdir = Workdir(self.folder / "run")

    def edit(self, mode: str, *overrides: str, **flags: Any) -> dict[str, float]:
        """Run with these settings and give the figures."""
        named = {"labels": list(scenes.CLASSES), "edit.mode": mode, "inpaint.batch_size": 4, **flags}
        pipeline.run([str(self.folder / "images")], self.workdir, load_config(None, overrides, named, environment={}))
        return edit_figures(self.workdir, self.folder)


def _table(lines: Sequence[tuple[str, dict[str, float]]]) -> None:
    names = list(dict.fromkeys(name for _, figures in lines for name in figures))
    click.echo("| | " + " | ".join(names) + " |")
    click.echo("|---|" + "---|" * len(names))
    for title, figures in lines:
        click.echo(f"| {title} | " + " | ".join(f"{figures[n]:.4g}" if n in figures else "" for n in names) + " |")


@click.group()
@click.option("--root", type=click.Path(path_type=Path), default=ROOT / ".edits", show_default=False)
@click.option("--first", default=FIRST, show_default=True, help="The first of the held-out scenes.")
@click.pass_context
def main(context: click.Context, root: Path, first: int) -> None:
    """Measure; see the module's first lines."""
    context.obj = (root, first)


@main.command()
@click.option("--images", default=500, show_default=True)
@click.pass_obj
def alpha(at: tuple[Path, int], images: int) -> None:
    """Things cut out of scenes: errors of alpha, and of the cut-out laid on black, grey and white."""
    bench = Bench(at[0], images, at[1])
    keep = {"edit.keep": list(THINGS)}
    _table(
        [
            ("hard mask", bench.edit("cutout", "edit.alpha.soft=false", **keep)),
            ("soft alpha", bench.edit("cutout", "edit.alpha.decontaminate=false", **keep)),
            ("soft alpha, clean colours", bench.edit("cutout", **keep)),
        ]
    )


@main.command()
@click.option("--images", default=100, show_default=True)
@click.option("--set", "overrides", multiple=True)
@click.pass_obj
def removal(at: tuple[Path, int], images: int, overrides: Sequence[str]) -> None:
    """All things taken away, around them held against the scene rendered without them."""
    bench = Bench(at[0], images, at[1])
    drop = {"edit.drop": list(THINGS)}
    lines = [("OpenCV's fill (`erase`)", bench.edit("erase", **drop))]
    lines.append(("the embedded pipeline (`remove`)", bench.edit("remove", *overrides, **drop)))
    _table(lines)


@main.command()
@click.option("--images", default=100, show_default=True)
@click.option("--set", "overrides", multiple=True)
@click.pass_obj
def replacement(at: tuple[Path, int], images: int, overrides: Sequence[str]) -> None:
    """Every thing replaced by the next kind of thing; and the same crops before, as a control."""
    bench = Bench(at[0], images, at[1])
    _table([("replaced", bench.edit("replace", *_next_kind(), *overrides, **{"edit.drop": list(THINGS)}))])


def _next_kind() -> list[str]:
    following = {name: f"a photo of a {THINGS[(k + 1) % len(THINGS)]}" for k, name in enumerate(THINGS)}
    return [f"edit.prompts={following}".replace("'", '"'), "edit.shape=box"]


@main.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--images", default=100, show_default=True)
@click.option("--rows", default=6, show_default=True)
@click.pass_obj
def sheet(at: tuple[Path, int], output: Path, images: int, rows: int) -> None:
    """Draw: scene, cut out, blurred behind, erased, removed, the scene without; replaced."""
    bench = Bench(at[0], images, at[1])
    keep, drop = {"edit.keep": list(THINGS)}, {"edit.drop": list(THINGS)}
    columns: list[dict[str, Array]] = []
    for mode, overrides, flags in (
        ("cutout", [], keep),
        ("fill", ["edit.fill.kind=blur"], keep),
        ("erase", [], drop),
        ("remove", [], drop),
        ("replace", _next_kind(), drop),
    ):
        bench.edit(mode, *overrides, **flags)
        columns.append(
            {name: _picture(bench.workdir.edited / output_name(name, "png")) for name in _chosen(bench, rows)}
        )
    lines = []
    for name in _chosen(bench, rows):
        seed = read_seeds(bench.folder)[name]
        scene = scenes.render(seed)
        without = scenes.render(seed, without=[thing.instance for thing in scene.things])
        cutout, fill, erase, remove, replace = (column[name] for column in columns)
        pictures = (scene.image, cutout, fill, erase, remove, without.image, replace)
        lines.append(np.hstack([cv2.resize(p, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for p in pictures]))
    Image.fromarray(np.vstack(lines)).save(output)


def _chosen(bench: Bench, rows: int) -> list[str]:
    """The first images with two to four things in them."""
    seeds = read_seeds(bench.folder)
    return [name for name, seed in seeds.items() if 2 <= len(scenes.render(seed).things) <= 4][:rows]


def _picture(path: Path) -> Array:
    """RGB, transparency on a chessboard."""
    image = Image.open(path).convert("RGBA")
    ys, xs = np.mgrid[: image.height, : image.width] // 12
    board = np.where((ys + xs) % 2, 255, 205).astype(np.uint8)
    behind = Image.fromarray(np.dstack([board] * 3)).convert("RGBA")
    return np.asarray(Image.alpha_composite(behind, image).convert("RGB"))


if __name__ == "__main__":
    main()
