#!/usr/bin/env python
"""Tables that compare edits with rendered scenes, whose truth is known.

    eval_edits.py alpha --images 500     # hard masks, soft alpha, clean colours
    eval_edits.py removal                # the generator against OpenCV's fill
    eval_edits.py replacement            # does CLIP name the new content?

Everything runs as a person would run it, from the images on; what was computed before in --root is not again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.edits import edit_figures
from ovseg_batch.evaluate.scenes import read_seeds, write_scenes
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.store import Workdir

ROOT = Path(__file__).resolve().parents[2]
FIRST = 7000  # of the held-out scenes; settings were tried on those from 3,000 on
THINGS = scenes.THING_NAMES


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
        pipeline.run([str(self.folder / "images")], self.workdir, load_config("demo", overrides, named, environment={}))
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
    """All things taken away, compared around them with the scene rendered without them."""
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
    """Every thing replaced by the next kind of thing."""
    bench = Bench(at[0], images, at[1])
    _table([("replaced", bench.edit("replace", *overrides, **next_kind(), **{"edit.drop": list(THINGS)}))])


def next_kind() -> dict[str, Any]:
    """Settings that name the next kind of thing in every thing's place."""
    following = {name: f"a photo of a {THINGS[(k + 1) % len(THINGS)]}" for k, name in enumerate(THINGS)}
    return {"edit.prompts": following, "edit.shape": "box"}


if __name__ == "__main__":
    main()
