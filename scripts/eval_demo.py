#!/usr/bin/env python
"""Held-out figures of the embedded models: what README and model card quote.

scripts/eval_demo.py attention    # every attention variant, dense alone and refined, for both CLIP checkpoints
scripts/eval_demo.py sam          # one point, SAM2's best-rated mask, mean IoU
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import click
import cv2
import numpy as np
import torch

from ovseg_batch import datasets, pipeline, scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.methods.prompts import component_points
from ovseg_batch.models import zoo
from ovseg_batch.models.device import precision, resolve_device
from ovseg_batch.models.sam import Sam
from ovseg_batch.store import Workdir

CHECKPOINTS = {"demo-image": "images and captions only", "demo": "with captions of sub-rectangles"}
COLUMNS = ("mIoU", "mIoU stuff", "mIoU things", "pixel accuracy", "boundary F1")
MIN_AREA = 0.001  # of the image: what the pipeline itself would prompt


@click.group()
@click.option("--images", default=100, show_default=True, help="Held-out scenes, the first ones of their range.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting, as in refine.vote=0.5.")
@click.pass_context
def main(context: click.Context, images: int, overrides: tuple[str, ...]) -> None:
    """Figures on held-out scenes."""
    context.obj = scenes.HELD_OUT_SEEDS[:images], overrides


@main.command()
@click.pass_obj
def attention(asked: tuple[range, tuple[str, ...]]) -> None:
    """A table in Markdown, by whole runs of the pipeline."""
    seeds, overrides = asked
    logging.getLogger("ovseg_batch").setLevel(logging.WARNING)
    click.echo("| CLIP | attention | | mIoU | stuff | things | accuracy | boundary F1 |")
    click.echo("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_scenes(root, seeds, jpeg_every=0)
        for model in CHECKPOINTS:
            for variant in VARIANTS:
                for name, method in (("dense", "none"), ("refined", "prompted")):
                    config = load_config(
                        overrides=overrides,
                        flags={
                            "labels": list(scenes.CLASSES),
                            "clip.model": model,
                            "dense.attention": variant,
                            "refine.method": method,
                            "refine.output": "semantic",
                        },
                        environment={},
                    )
                    workdir = Workdir(root / f"{model}-{variant}")
                    pipeline.run([str(root / "images")], workdir, config, progress=False)
                    found = pipeline.evaluate(workdir, datasets.load("scenes"), root).figures()
                    cells = " | ".join(f"{found[name]:.3f}" for name in COLUMNS)
                    click.echo(f"| {model} | `{variant}` | {name} | {cells} |")


@main.command()
@click.pass_obj
def sam(asked: tuple[range, tuple[str, ...]]) -> None:
    """One point in the middle of every thing and every connected piece of stuff."""
    seeds, _ = asked
    device = resolve_device("auto")
    model = Sam.load(zoo.resolve("sam", "demo"), device, precision("auto", "auto"))
    overlaps: dict[str, list[float]] = {"stuff": [], "things": []}
    for seed in seeds:
        scene = scenes.render(seed)
        size = scene.classes.shape
        targets = [("things", scene.instances == thing.instance) for thing in scene.things]
        for label in np.unique(scene.classes[scene.instances == 0]):
            count, pieces = cv2.connectedComponents(
                ((scene.classes == label) & (scene.instances == 0)).astype(np.uint8), connectivity=8
            )
            targets += [("stuff", pieces == k) for k in range(1, count)]
        targets = [(kind, mask) for kind, mask in targets if mask.sum() >= MIN_AREA * mask.size]
        points = [component_points(mask.astype(np.int16), 1, 0, ignore=(0,))[0] for _, mask in targets]
        [embedding] = model.embed([scene.image])
        logits, rated = model.predict(embedding, np.array([(p.x, p.y) for p in points], np.float32))
        best = logits[torch.arange(len(logits)), rated.argmax(dim=1)]
        masks = (Sam.upsample(best, (size[0], size[1])) > 0).cpu().numpy()
        for (kind, truth), mask in zip(targets, masks, strict=True):
            overlaps[kind].append(float((truth & mask).sum() / (truth | mask).sum()))
    everything = overlaps["stuff"] + overlaps["things"]
    for kind, values in {"all": everything, **overlaps}.items():
        click.echo(f"{kind:7} {len(values):5} points   mean IoU {np.mean(values):.3f}")


if __name__ == "__main__":
    main()
