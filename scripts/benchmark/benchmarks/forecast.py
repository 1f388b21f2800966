"""How far the forecast of `try` is from the run that it forecasts, and what a second trial costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from skimage import data as photographs

MEGAPIXELS = (0.1, 2.0)  # least and largest size of a picture
RATIOS = (0.5, 2.0)  # of width to height
COLOUR = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "rocket.jpg", "retina.jpg")


@click.command()
@click.option("--images", default=200, show_default=True, help="Pictures to make.")
@click.option("--seeds", default=10, show_default=True, help="Trials, each with another sample.")
@click.option("--sampled", default=24, show_default=True, help="Images of a trial.")
@click.option("--wallpapers", type=click.Path(path_type=Path), default=Path("/usr/share/backgrounds/mate"))
@click.option("--labels", default="sky; tree; person; car; water; building", show_default=True)
@click.option("--other-labels", default="cloud; flower; cat; road", show_default=True, help="Of the second trial.")
@click.option("--set", "overrides", multiple=True, help="Settings; without any: full-size models with random weights.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the pictures and the workdirs here.")
@click.option("--json-file", type=click.Path(path_type=Path))
def forecast(
    images: int,
    seeds: int,
    sampled: int,
    wallpapers: Path,
    labels: str,
    other_labels: str,
    overrides: Sequence[str],
    folder: Path | None,
    json_file: Path | None,
) -> None:
    """Measure one run over all pictures. Then forecast it with `try`, once per seed."""
    overrides = overrides or (
        "clip.model=ViT-B-16-quickgelu",
        "clip.weights=random:0",
        "sam.model=sam2.1-tiny",
        "sam.weights=random:0",
    )
    settings = [part for text in overrides for part in ("--set", text)]
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        make_pictures(root / "images", images, wallpapers)
        truth, _ = _command("run", root / "images", "-o", root / "run", "--labels", labels, *settings)
        click.echo(f"the run over {images} images took {truth:.0f} s")
        lines, first = [], 0.0
        for seed in range(seeds):
            trial = root / f"try{seed}"
            given = ("try", root / "images", "-o", trial, "-n", sampled, "--seed", seed, *settings, "--json")
            seconds, record = _command(*given, "--labels", labels)
            first = first or seconds
            low, high = record["seconds_low"], record["seconds_high"]
            lines.append(
                {
                    "seed": seed,
                    "try": seconds,
                    "forecast": record["seconds"],
                    "low": low,
                    "high": high,
                    "inside": low <= truth <= high,
                    "width": (high - low) / 2 / record["seconds"],
                }
            )
            click.echo(
                f"seed {seed}: {record['seconds']:7.1f} s ({low:.1f} to {high:.1f}), ±{lines[-1]['width']:.0%}, "
                f"{record['seconds'] / truth - 1:+.1%}, {'inside' if lines[-1]['inside'] else 'OUTSIDE'}; "
                f"the trial took {seconds:.0f} s"
            )
        again = ("try", root / "images", "-o", root / "try0", "-n", sampled, "--seed", 0, *settings, "--json")
        second, record = _command(*again, "--labels", other_labels)
    inside = sum(line["inside"] for line in lines)
    click.echo(f"inside {inside} of {seeds}; widest interval ±{max(line['width'] for line in lines):.0%}")
    click.echo(f"second trial with other words: {second:.0f} s, {second / first:.2f} of the first")
    figures = {
        "run": truth,
        "trials": lines,
        "second": second,
        "second_ratio": second / first,
        "settings": [*overrides],
    }
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def make_pictures(folder: Path, count: int, wallpapers: Path) -> None:
    """Write crops of photographs of scikit-image and of wallpapers, of random place, shape and size."""
    if folder.is_dir() and len([*folder.iterdir()]) == count:
        return
    own = Path(photographs.__file__).parent
    files = [own / name for name in COLOUR if (own / name).exists()]
    files += sorted(path for path in wallpapers.rglob("*") if path.suffix in (".jpg", ".png"))
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    opened = [Image.open(path).convert("RGB") for path in files]
    for number in range(count):
        picture = opened[number % len(opened)]
        ratio = float(np.exp(rng.uniform(*np.log(RATIOS))))
        pixels = 1e6 * float(np.exp(rng.uniform(*np.log(MEGAPIXELS))))
        width, height = round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)
        scale = min(picture.width / width, picture.height / height) * rng.uniform(0.4, 1.0)
        box = (width * scale, height * scale)
        left, top = (rng.uniform(0, whole - part) for whole, part in zip(picture.size, box, strict=True))
        crop = picture.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + box[0], top + box[1]))
        crop.save(folder / f"{number:04}.jpg", quality=92)


def _command(*arguments: Any) -> tuple[float, dict[str, Any]]:
    """Return the seconds of a command, and its JSON."""
    command = [sys.executable, "-m", "ovseg_batch", *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise click.ClickException(done.stderr[-2000:])
    return seconds, json.loads(done.stdout) if "--json" in arguments else {}
