#!/usr/bin/env python
"""Does training on our masks work? A small network learns from pseudo-labels, and from the truth of the same scenes.

student.py                      # 2,000 scenes, three students, 200 held-out scenes; about an hour on two cores
student.py --images 200 --minutes 1 --of unfiltered

The students are alike and train for the same number of steps: on the truth, on every mask, and on masks that are sure
enough. `--keep` and `--ignore-below` are what `export -f semantic` takes. Scenes and pseudo-labels stay in .student/.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg_batch import datasets, scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.metrics import SemanticScore
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.evaluate.truth.datasets import TruthReader
from ovseg_batch.export.exporting import Options, export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.selection import Selection
from ovseg_batch.export.thresholds import keep_share
from ovseg_batch.runs import pipeline
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

Array = np.ndarray[Any, Any]

FOLDER = Path(".student")
FIRST = 20_000  # of the held-out scenes, to learn from; those from 0 on are for the figures
CLASSES = len(scenes.CLASSES)
CROP, BATCH, RATE = 128, 8, 3e-3
IGNORE = 255


class Student(nn.Module):
    """A small U-Net at half the size: (B, 3, H, W) in [0, 1] to (B, C, H, W), sides multiples of 16."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([12, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(_block(a + b, a) for a, b in zip(sizes[-2::-1], sizes[:0:-1], strict=True))
        self.out = nn.Conv2d(width, CLASSES, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x, kept = F.pixel_unshuffle(pixels, 2), list[Tensor]()
        for k, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if k else x)
            kept.append(x)
        for block, beside in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), beside], dim=1))
        return F.interpolate(self.out(x), scale_factor=2, mode="bilinear")


def _block(a: int, b: int) -> nn.Sequential:
    def convolution(a: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]

    return nn.Sequential(*convolution(a), *convolution(b))


class Lessons:
    """Images and the labels to learn, all in memory."""

    def __init__(self, images: list[Array], labels: list[Array], seed: int) -> None:
        self._images, self._labels = images, labels
        self._rng = np.random.default_rng(seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, 3, crop, crop) and (B, crop, crop), mirrored half of the time, for ever."""
        while True:
            pairs = [self._crop(int(k)) for k in self._rng.integers(len(self._images), size=BATCH)]
            pixels = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).float() / 255
            yield pixels, torch.from_numpy(np.stack([labels for _, labels in pairs])).long()

    def _crop(self, k: int) -> tuple[Array, Array]:
        image, labels = self._images[k], self._labels[k]
        y, x = (int(self._rng.integers(side - CROP + 1)) for side in labels.shape)
        parts = image[y : y + CROP, x : x + CROP], labels[y : y + CROP, x : x + CROP]
        flip = self._rng.random() < 0.5
        return (parts[0][:, ::-1], parts[1][:, ::-1]) if flip else parts


def learn(lessons: Lessons, steps: int) -> Student:
    """A student of so many steps."""
    torch.manual_seed(0)
    student = Student().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    begun = time.monotonic()
    for step, (pixels, labels) in zip(range(steps), lessons.batches(), strict=False):
        loss = F.cross_entropy(student(pixels), labels, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            click.echo(f"  step {step:5} loss {loss.item():.3f}  {time.monotonic() - begun:.0f} s", err=True)
    return student.eval()


@torch.inference_mode()
def mean_iou(student: Student, images: list[Array], truths: list[Array]) -> float:
    score = SemanticScore(CLASSES)
    for image, truth in zip(images, truths, strict=True):
        height, width = truth.shape
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        padded = F.pad(pixels, (0, -width % 16, 0, -height % 16), mode="replicate")
        score.add(student(padded)[0, :, :height, :width].argmax(dim=0).numpy().astype(np.int16), truth)
    return score.mean_iou()


def _read(root: Path, labels: Path | None = None) -> tuple[list[Array], list[Array]]:
    """Images, and their class maps: a folder's, or the truth."""
    reader = TruthReader(datasets.load("scenes"), root)
    images, maps = [], []
    for path in sorted((root / "images").iterdir()):
        truth = (
            reader.read(path.name).classes if labels is None else np.asarray(Image.open(labels / f"{path.stem}.png"))
        )
        assert truth is not None
        images.append(np.array(Image.open(path).convert("RGB")))
        maps.append(truth.astype(np.uint8))
    return images, maps


@click.command()
@click.option("--images", default=2000, show_default=True, help="Scenes to learn from.")
@click.option("--steps", default=3000, show_default=True, help=f"Steps of {BATCH} crops.")
@click.option("--held-out", default=200, show_default=True, help="Scenes that none has seen.")
@click.option("--first", default=0, show_default=True, help="The first of these.")
@click.option("--ignore-below", default=0.0, show_default=True)
@click.option("--keep", default=1.0, show_default=True, help="Share of every label's pixels, the surest.")
@click.option("--of", "only", type=click.Choice(["truth", "unfiltered", "filtered"]), multiple=True, help="Only these.")
def main(
    images: int, steps: int, held_out: int, first: int, ignore_below: float, keep: float, only: tuple[str, ...]
) -> None:
    """Render, segment, export, learn, compare."""
    lessons, exam = FOLDER / f"lessons-{images}", FOLDER / f"exam-{first}-{held_out}"
    for root, begin, count in ((lessons, FIRST, images), (exam, first, held_out)):
        if not (root / "images").is_dir() or len(list((root / "images").iterdir())) < count:
            write_scenes(root, scenes.HELD_OUT_SEEDS[begin : begin + count], jpeg_every=0)
    config = load_config(Path("pseudo-labels"), [], {"labels": list(scenes.CLASSES), **EMBEDDED}, environment={})
    workdir = Workdir(lessons / "run")
    pipeline.run([str(lessons / "images")], workdir, config)
    results = Results.open(workdir)
    thresholds = keep_share(results, keep) if keep < 1 else {}
    made = {
        "unfiltered": Options(),
        "filtered": Options(ignore_below=ignore_below, thresholds=thresholds),
    }
    questions, answers = _read(exam)
    found = {}
    for name in only or ("truth", "unfiltered", "filtered"):
        folder = None
        if name != "truth":
            folder = lessons / f"{name}-{ignore_below:g}-{keep:g}"
            export(workdir, WRITERS["semantic"], folder, Selection(), made[name])
        pixels, labels = _read(lessons, folder)
        known = float(np.mean([(one != IGNORE).mean() for one in labels]))
        click.echo(f"{name}: {known:.1%} of the pixels", err=True)
        found[name] = {"mIoU": round(mean_iou(learn(Lessons(pixels, labels, 0), steps), questions, answers), 4)}
        found[name]["pixels"] = round(known, 4)
        click.echo(json.dumps({name: found[name]}))


EMBEDDED = {"clip.model": "demo", "sam.model": "demo"}

if __name__ == "__main__":
    main()
