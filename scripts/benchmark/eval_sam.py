#!/usr/bin/env python
"""How well the embedded SAM2 answers one point, on held-out scenes: what the model card quotes.

One point in the middle of every thing and every connected piece of stuff; the mask that SAM2 rates best.
"""

from __future__ import annotations

import click
import cv2
import numpy as np
import torch

from ovseg_batch import scenes
from ovseg_batch.methods.prompts import component_points
from ovseg_batch.methods.resized_masks import above
from ovseg_batch.models import zoo
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.precision import precision
from ovseg_batch.models.sam import Sam

MIN_AREA = 0.001  # of the image: what the pipeline itself would prompt


@click.command()
@click.option("--images", default=100, show_default=True, help="Held-out scenes, the first ones of their range.")
def main(images: int) -> None:
    """Mean IoU over all prompts, over things and over pieces of stuff."""
    model = Sam.load(zoo.resolve("sam", "demo"), resolve_device("auto"), precision("auto", "auto"))
    overlaps: dict[str, list[float]] = {"stuff": [], "things": []}
    for seed in scenes.HELD_OUT_SEEDS[:images]:
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
        masks = [above(one, (size[0], size[1])).placed().whole((size[0], size[1])) for one in best.cpu()]
        for (kind, truth), mask in zip(targets, masks, strict=True):
            overlaps[kind].append(float((truth & mask).sum() / (truth | mask).sum()))
    everything = overlaps["stuff"] + overlaps["things"]
    for kind, values in {"all": everything, **overlaps}.items():
        click.echo(f"{kind:7} {len(values):5} points   mean IoU {np.mean(values):.3f}")


if __name__ == "__main__":
    main()
