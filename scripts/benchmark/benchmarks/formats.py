"""What every export format and the report cost for large images with many masks."""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from PIL import Image

from benchmarks.edits import GivenMasks
from benchmarks.outputs import SUFFIXES, write_run
from ovseg_batch.export.exporting import Options, export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.selection import Selection
from ovseg_batch.io import rle
from ovseg_batch.methods.components import connected_components
from ovseg_batch.methods.runs import RunMap
from ovseg_batch.report.build import build_report
from ovseg_batch.stages.answer import make_annotation
from ovseg_batch.stages.base import Upstream
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.workdir.store import Workdir

LABELS = tuple(f"label {k}" for k in range(8))
GRID = 8, 11  # values of the random maps whose highest one decides the label of a pixel


class RandomMasks(GivenMasks):
    """The largest regions of smooth random maps, the same for every image."""

    def __init__(self, size: tuple[int, int], masks: int) -> None:
        self._size, self._masks = size, masks

    def setup(self, device: str) -> None:
        rng = np.random.default_rng(0)
        best, winner = np.full(self._size, -np.inf, np.float32), np.zeros(self._size, np.int16)
        for label in range(len(LABELS)):
            values = rng.standard_normal(GRID).astype(np.float32)
            one = cv2.resize(values, self._size[::-1], interpolation=cv2.INTER_CUBIC)
            np.copyto(winner, label, where=one > best)
            np.maximum(best, one, out=best)
        pieces = connected_components(RunMap.of(winner))
        counts = rle.encode_regions(pieces.numbers.pixels())
        largest = [k for k in np.argsort(-pieces.areas, kind="stable").tolist() if k in counts][: self._masks]
        self._annotations = [
            make_annotation(counts[k], self._size, None, LABELS[pieces.labels[k]], score, 1, score, False)
            for k, score in zip(largest, rng.random(len(largest)).tolist(), strict=True)
        ]

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        height, width = self._size
        for row in rows:
            values = {"height": height, "width": width, "points": 0, "annotations": self._annotations}
            yield RowResult(row.row, row.key, values)


def write_large_run(folder: Path, images: int, size: tuple[int, int], masks: int) -> Workdir:
    """A finished workdir of images of (H, W) pixels: `folder/run`, and `folder/image.jpg`."""
    drawn = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(drawn).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / "image.jpg")
    make_stage = functools.partial(RandomMasks, size, masks)
    return write_run(folder / "run", [folder / "image.jpg"], images, make_stage, LABELS)


@click.command()
@click.option("--images", default=4, show_default=True)
@click.option("--masks", default=64, show_default=True)
@click.option("--height", default=3000, show_default=True)
@click.option("--width", default=4000, show_default=True)
@click.option("--repeats", default=3, show_default=True, help="The fastest of so many.")
@click.option("-f", "--format", "kinds", multiple=True, type=click.Choice([*WRITERS, "report"]), help="Only these.")
def formats(images: int, masks: int, height: int, width: int, repeats: int, kinds: Sequence[str]) -> None:
    """Milliseconds per image and mask of every export format, without image files, and of the report; one process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workdir = write_large_run(folder, images, (height, width), masks)
        for kind in kinds or (*WRITERS, "report"):
            target = folder / f"out{SUFFIXES.get(kind, '')}"
            seconds = min(_seconds(functools.partial(_write, workdir, kind, target), target) for _ in range(repeats))
            each = seconds * 1000 / images
            click.echo(f"{kind:16} {each:9.1f} ms an image  {each / masks:8.2f} ms a mask")


def _write(workdir: Workdir, kind: str, target: Path) -> Any:
    if kind == "report":
        return build_report(workdir, target, workers=0)
    return export(workdir, WRITERS[kind], target, Selection(), Options(images="none"), workers=0)


def _seconds(work: Callable[[], object], target: Path) -> float:
    """Return the seconds of writing a file or folder, which is removed afterwards."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return seconds
