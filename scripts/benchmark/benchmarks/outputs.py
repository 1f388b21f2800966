"""What is made of a finished run: exports of a million masks, and a report of a hundred thousand images."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from playwright.sync_api import sync_playwright

from benchmarks.edits import GivenMasks
from benchmarks.measure import measured
from ovseg_batch import scenes
from ovseg_batch.engine import local
from ovseg_batch.engine.job import StageJob
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.export import FORMATS
from ovseg_batch.io import rle
from ovseg_batch.io.entries import Entry, Source
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.report.thumbnails import Album, image_token, masks_token
from ovseg_batch.stages.answer import make_annotation
from ovseg_batch.stages.base import Stage, Upstream
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

SEEDS = scenes.HELD_OUT_SEEDS[8000:8050]
SUFFIXES = {"coco": ".json", "coco-polygon": ".json", "cvat": ".xml", "csv": ".csv"}


class RepeatedMasks(GivenMasks):
    """The true masks of a few scenes, over and over, each image with confidences of its own."""

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []

    def setup(self, device: str) -> None:
        for seed in SEEDS:
            scene = scenes.render(seed)
            height, width = size = scene.classes.shape
            counts, things = rle.encode_regions(scene.instances), scene.things
            named = [(counts[t.instance], t.name) for t in things]
            stuff = rle.encode_regions(scene.classes * (scene.instances == 0))
            named += [(one, scenes.CLASSES[k]) for k, one in stuff.items()]
            masks = [make_annotation(one, size, None, name, 1, 1, 1, False) for one, name in named]
            self._lines.append({"height": height, "width": width, "points": 0, "annotations": masks})

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        for row in rows:
            rng, line = np.random.default_rng(row.row), self._lines[row.row % len(self._lines)]
            masks = [
                replace(one, confidence=float(c))
                for one, c in zip(line["annotations"], rng.beta(5, 1, 99), strict=False)
            ]
            yield RowResult(row.row, row.key, {**line, "annotations": masks})


def write_synthetic_run(folder: Path, images: int) -> Workdir:
    """A finished workdir of so many images without running any model: `folder/run`, and `folder/images`."""
    write_scenes(folder, SEEDS, jpeg_every=0)
    files = sorted((folder / "images").iterdir())
    return write_run(folder / "run", files, images, RepeatedMasks, scenes.CLASSES)


def write_run(
    root: Path, files: Sequence[Path], images: int, make_stage: Callable[[], Stage], labels: Sequence[str]
) -> Workdir:
    """A finished workdir whose masks a stage makes; its images are the files, over and over."""
    entries = (
        Entry(str(files[k % len(files)]), f"{k // 1000:05d}/image-{k:07d}{files[0].suffix}", "synthetic")
        for k in range(images)
    )
    workdir = Workdir(root)
    workdir.create()
    build_manifest([Source("synthetic", [], entries)], workdir.manifest, 256)
    manifest = Manifest.open(workdir.manifest)
    store = workdir.stage("refine", "0" * 32)
    store.create({})
    job = StageJob(make_stage, store, workdir.manifest, threads=1)
    for _ in local.run_stage(job, store.missing(manifest.shards), ["cpu"], in_process=True):
        pass
    stage = {"name": "refine", "folder": store.folder.name, "fingerprint": store.fingerprint}
    plan = {"manifest": manifest.fingerprint, "rows": images, "shards": manifest.shards, "labels": list(labels)}
    workdir.write_plan({**plan, "stages": [stage]})
    return workdir


@click.command()
@click.option("--masks", default=1_000_000, show_default=True)
@click.option("-f", "--format", "kinds", multiple=True, type=click.Choice(list(FORMATS)), help="Only these.")
def exports(masks: int, kinds: Sequence[str]) -> None:
    """Time and peak memory of exporting so many masks, beside a tenth of them; one process, no image files."""
    each = np.mean([len(scenes.render(seed).things) + 2 for seed in SEEDS])
    with tempfile.TemporaryDirectory() as temporary:
        for count in (masks // 10, masks):
            folder = Path(temporary) / str(count)
            workdir = write_synthetic_run(folder, round(count / each))
            for kind in kinds or ("coco", "coco-polygon", "csv", "cvat"):
                target = folder / f"{kind}{SUFFIXES.get(kind, '')}"
                arguments = ["export", str(workdir.root), "-f", kind, "-o", str(target), "--workers", "0"]
                seconds, peak = measured([*arguments, "--images", "none"])
                size = target.stat().st_size if target.is_file() else 0
                click.echo(f"{count:8} masks  {kind:14} {seconds:7.1f} s   peak {peak:6.0f} MiB  {size / 1e6:8.0f} MB")


@click.command()
@click.option("--images", default=100_000, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to leave it; otherwise it goes.")
@click.option("--chromium", default="/usr/bin/chromium", show_default=True)
def report(images: int, folder: Path | None, chromium: str) -> None:
    """A report of so many images: how long it is written, and until a browser shows the first of them.

    The small pictures are made once for the scenes there are; the others are links to them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        workdir = write_synthetic_run(root, images)
        output = root / "report"
        arguments = ["report", str(workdir.root), "-o", str(output), "--workers", "0"]
        measured([*arguments, "--limit", str(len(SEEDS))])
        _link_pictures(workdir, Album(output))
        seconds, peak = measured([*arguments, "--limit", str(images)])
        click.echo(f"{images} images  written in {seconds:.1f} s (pictures apart)  peak {peak:.0f} MiB")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for name, width in (("desktop", 1280), ("phone", 390)):
                page = browser.new_page(viewport={"width": width, "height": 900})
                started = time.perf_counter()
                page.goto((output / "index.html").as_uri())
                page.wait_for_function("performance.getEntriesByName('first view').length")
                first = page.evaluate("performance.getEntriesByName('first view')[0].startTime")
                page.wait_for_selector("html[data-ready]")
                ready = time.perf_counter() - started
                frames = page.evaluate(SCROLL)
                click.echo(
                    f"{name:8} first view {first / 1000:.2f} s, everything listed {ready:.2f} s; scrolling from end to "
                    f"end: the longest frame {max(frames):.0f} ms, half of them under {np.median(frames):.0f} ms"
                )
            browser.close()


SCROLL = """async () => {
    const tall = document.documentElement.scrollHeight, frames = [];
    let before = performance.now();
    for (let k = 0; k <= 120; k++) {
        scrollTo({ top: tall * k / 120, behavior: "instant" });
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        frames.push(now - before);
        before = now;
    }
    return frames;
}"""


def _link_pictures(workdir: Workdir, album: Album) -> None:
    """Link the pictures that are there under the names of all images."""
    there = {kind: sorted((album.root / kind).glob("*/*.webp")) for kind in ("images", "masks")}
    if missing := [kind for kind, paths in there.items() if not paths]:
        raise click.ClickException(f"the report has no {missing[0]}")
    results = Results.open(workdir)
    for shard in range(results.manifest.shards):
        for image in results.shard(shard):
            row = image.row.row
            tokens = {"images": image_token(image.row), "masks": masks_token(image, results.labels)}
            for kind, token in tokens.items():
                target = album.path(kind, row, token)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.link(there[kind][row % len(there[kind])], target)
