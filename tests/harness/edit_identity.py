"""Check that no edit changes a bit outside its masks: random masks over photographs in every variant of file.

python -m tests.harness edit-identity --images 100     # the exit code is 1 when a bit differs
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import skimage.data
from PIL import Image

from ovseg_batch.io.pictures import Picture
from ovseg_batch.methods.blending import widened
from ovseg_batch.settings import Config
from tests.harness.image_variants import IN_PLACE, allowed, decoded, disc, edited, pixels_of, settings, write_variants

Array = np.ndarray[Any, Any]

PHOTOGRAPHS = "astronaut chelsea coffee rocket retina immunohistochemistry colorwheel cat".split()
LARGE = (6000, 4000)  # 24 megapixels
BAND = 0.005  # of the longer side, the width in which alpha is estimated


def make_pictures(folder: Path, images: int) -> list[Path]:
    """So many files: a large one in five variants, and photographs of other sizes in all of them."""
    library: Any = skimage.data
    (folder / "large").mkdir()
    large = Image.fromarray(library.astronaut()).resize(LARGE, Image.Resampling.BICUBIC)
    whole = write_variants(folder / "large", large)
    files = [whole[name] for name in ("turned.jpg", "cmyk.jpg", "deep.png", "plain.tiff", "clear.png")]
    for number, name in enumerate(PHOTOGRAPHS * 9):
        if len(files) >= images:
            break
        try:
            pixels = getattr(library, name)()
        except Exception:  # not every photograph comes with the package
            continue
        inside = folder / str(number)
        inside.mkdir()
        side = 97 + 61 * (number % 11)
        picture = Image.fromarray(pixels[..., :3]).resize((side, side * 3 // 4 + 1))
        files += write_variants(inside, picture, f"{name}-{side}-").values()
    return files[:images]


def in_place(made: Array, before: Picture, cats: list[Array], config: Config) -> tuple[bool, int, bool]:
    """Are the pixels outside the masks the old ones? How many are they, and did any inside change?"""
    region = allowed(cats, config)
    same = np.array_equal(made[..., :3][~region], before.pixels[~region])
    if before.alpha is not None:
        same = same and np.array_equal(made[..., 3], before.alpha)
    return same, int((~region).sum()), bool((made[..., :3][region] != before.pixels[region]).any())


def cut_out(made: Array, before: Picture, cats: list[Array], config: Config) -> tuple[bool, int, bool]:
    """Are the colours inside, but for the band along the edge, the old ones, and is nothing left outside of it?"""
    mask = np.any(cats, axis=0)
    inner, outer = ~widened(~mask, _band(mask)) & (made[..., 3] > 0), ~widened(mask, _band(mask))
    same = np.array_equal(made[..., :3][inner], before.pixels[inner]) and not made[outer].any()
    return same, int(inner.sum() + outer.sum()), True


def cropped(made: Array, before: Picture, cats: list[Array], config: Config) -> tuple[bool, int, bool]:
    """Is it the masks' box of the old picture?"""
    ys, xs = np.nonzero(np.any(cats, axis=0))
    box = before.pixels[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    return np.array_equal(made[..., :3], box), box.shape[0] * box.shape[1], True


def masked(made: Array, before: Picture, cats: list[Array], config: Config) -> tuple[bool, int, bool]:
    """Is it white inside, black outside, but for the band along the edge?"""
    mask = np.any(cats, axis=0)
    inner, outer = (~widened(part, _band(mask)) for part in (~mask, mask))
    return bool((made[inner] == 255).all() and not made[outer].any()), int(inner.sum() + outer.sum()), True


def _band(mask: Array) -> int:
    return max(3, int(np.ceil(BAND * max(mask.shape))) + 1)


#: Modes whose picture is not the old one with something changed, and how they are looked at.
ELSEWHERE: list[tuple[str, tuple[str, ...]]] = [("cutout", ()), ("crop", ()), ("mask", ())]
CHECKS = {"cutout": cut_out, "crop": cropped, "mask": masked}


@click.command()
@click.option("--images", default=100, show_default=True, help="Number of image files.")
@click.option("--seed", default=0, show_default=True, help="Seed of the masks.")
def main(images: int, seed: int) -> None:
    """Apply every edit to many kinds of image files, and compare the pixels outside the masks."""
    rng = np.random.default_rng(seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        files = make_pictures(Path(temporary), images)
        sizes = [decoded(file).pixels.shape[:2] for file in files]
        for mode, overrides in (*IN_PLACE, *ELSEWHERE):
            config = settings(mode, f"edit.{'drop' if (mode, overrides) in IN_PLACE else 'keep'}=cat", *overrides)
            outside = changed = failed = differing = 0
            for file, (h, w) in zip(files, sizes, strict=True):
                radius = 0.004 if h * w > 10_000_000 and rng.random() < 0.5 else 0.15  # tiny masks too
                places = rng.uniform((0.05, 0.05, 0.5 * radius), (0.95, 0.95, 1.5 * radius), (2, 3))
                cats = [disc(h, w, *(float(value) for value in place)) for place in places]
                [result] = edited(config, [file], [[*(("cat", cat) for cat in cats), ("sky", disc(h, w))]])
                if not result.ok:
                    failed += 1
                    click.echo(f"{mode} {file.name}: {result.message}")
                    continue
                before, made = decoded(file), pixels_of(next(iter(result.files.values())))
                same, compared, change = CHECKS.get(mode, in_place)(made, before, cats, config)
                differing += not same
                outside += compared
                changed += change
            wrong += differing + failed
            click.echo(f"{mode:8} {' '.join(overrides)}")
            click.echo(
                f"         {len(files)} images, {changed} changed, {failed} failed, {differing} differ where they must "
                f"not; {outside / 1e6:.0f} megapixels compared"
            )
    sys.exit(wrong > 0)
