"""What words that compete cost: a few labels and the automatic background, beside as many plain labels."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import torch
from PIL import Image

from benchmarks.measure import run_all, seconds_of
from benchmarks.speed import chosen_folder, machine, model_flags, shared_options
from ovseg_batch.config import load_config
from ovseg_batch.io.images import read_image
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.models.device import keep_memory
from ovseg_batch.runs import planning
from ovseg_batch.settings import RunConfig
from ovseg_batch.stages.base import read_limits
from ovseg_batch.workdir.store import Workdir

MEGAPIXEL = 1_000_000
CPU = torch.device("cpu")
LABELS = ("person", "cat", "car", "road")
PLAIN, COMPETING = "4 plain labels", "3 labels, auto"
SIDES: dict[str, dict[str, Any]] = {
    PLAIN: {"labels": "; ".join(LABELS), "background": "none"},
    COMPETING: {"labels": "; ".join(LABELS[:3]), "background": "auto"},
}
# With random weights the best of many words wins every pixel, so SAM2 has no prompt: compare the dense maps alone, too.
RULES: dict[str, dict[str, Any]] = {"with SAM2": {}, "dense map alone": {"refine.method": "none"}}

Side = tuple[Any, planning.PlannedStage, Manifest]


@click.command()
@shared_options
@click.option("--megapixels", default="0.2,12", show_default=True, help="Sizes that the images are brought to.")
@click.option("--repeats", default=3, show_default=True, help="The fastest of so many counts, on both sides.")
def words(megapixels: str, repeats: int, overrides: Sequence[str], json_file: Path | None, **options: Any) -> None:
    """Seconds of each stage with four plain labels, and with three labels and the words that compete with them."""
    keep_memory()
    figures: dict[str, Any] = {"machine": machine(CPU)}
    click.echo(figures["machine"])
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        source = chosen_folder(options, root / "source")
        for size in megapixels.split(","):
            images = write_resized(source, root / size, float(size))
            for rule, settings in RULES.items():
                sides = {}
                for name, vocabulary in SIDES.items():
                    flags = {**model_flags(options), "run.device": "cpu", **vocabulary, **settings}
                    sides[name] = _stages(images, root / f"{size} {rule} {name}", flags, overrides)
                figures[f"{size} MP, {rule}"] = _compare(f"{size} MP, {rule}", sides, repeats)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def write_resized(source: Path, folder: Path, megapixels: float) -> Path:
    """Write the images of a folder at another size."""
    folder.mkdir()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        image = read_image(path, read_limits(RunConfig()))
        scale = (megapixels * MEGAPIXEL / (image.shape[0] * image.shape[1])) ** 0.5
        Image.fromarray(cv2.resize(image, None, fx=scale, fy=scale)).save(folder / f"{path.stem}.jpg", quality=90)
    return folder


def _stages(images: Path, root: Path, flags: Mapping[str, Any], overrides: Sequence[str]) -> list[Side]:
    """Return the stages of a run, with their models loaded and their text encoded."""
    config = load_config("demo", overrides=overrides, flags=flags, environment={})
    workdir = Workdir(root)
    workdir.create()
    build_manifest([str(images)], workdir.manifest, config.manifest.shard_rows)
    manifest = Manifest.open(workdir.manifest)
    sides = []
    for planned in planning.plan(config, workdir, manifest, workdir.manifest):
        stage = planned.job.make_stage()
        stage.setup("cpu")
        sides.append((stage, planned, manifest))
    return sides


def _compare(title: str, sides: Mapping[str, Sequence[Side]], repeats: int) -> dict[str, Any]:
    """Run the sides in turn; print and return the fastest seconds of each stage, and their ratio."""
    fastest: dict[str, dict[str, float]] = {name: {} for name in sides}
    for turn in range(repeats + 1):  # the first one warms up
        for name, stages in sides.items():
            for stage, planned, manifest in stages:
                seconds = seconds_of(functools.partial(run_all, stage, planned, manifest), CPU)
                if turn:
                    fastest[name][planned.name] = min(seconds, fastest[name].get(planned.name, seconds))
    totals = {name: sum(of_stages.values()) for name, of_stages in fastest.items()}
    for name, of_stages in fastest.items():
        stages_told = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in of_stages.items())
        click.echo(f"{title:26} {name:16} {totals[name]:7.2f} s  ({stages_told})")
    ratio = totals[COMPETING] / totals[PLAIN]
    click.echo(f"{title:26} ratio {ratio:.3f}")
    return {"seconds": fastest, "ratio": ratio}
