#!/usr/bin/env python
"""How fast, how much memory. Every figure is a ratio of two things measured side by side in one run.

scripts/bench.py speed                    # the stages against the bare forwards of the same batches
scripts/bench.py speed --clip ViT-B-16-quickgelu --clip-weights random:0 --sam sam2.1-tiny --sam-weights random:0
scripts/bench.py memory                   # peak memory of 2,000 images against 200
scripts/bench.py manifest                 # a million rows: written, planned, asked about
scripts/bench.py edits                    # cutting out against bare Pillow decoding and encoding the same files
scripts/bench.py edit-memory              # peak memory of cutting out 5,000 images against 500
scripts/bench.py generator                # Stable Diffusion 1.5's inpainting pipeline at full size, random weights
scripts/bench.py exports                  # a million masks into other formats: time and peak memory
scripts/bench.py report                   # a report of 100,000 images: until a browser shows it
scripts/bench.py rows                     # peak memory of a trivial stage over a million rows against ten thousand
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from benching.edits import GivenMasks, edit_memory, edits, generator, run_edits
from benching.measure import measured, measured_process, run_all, seconds_of
from benching.outputs import exports, report

from ovseg_batch import planning, scenes
from ovseg_batch.config import load_config
from ovseg_batch.engine import local
from ovseg_batch.engine.job import StageJob
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.export.coco import write_coco
from ovseg_batch.io.atomic import file_record
from ovseg_batch.io.images import decode_ahead
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.tables import TABLE, read_results
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.sam import Embedding, Sam
from ovseg_batch.planning import PlannedStage
from ovseg_batch.progress import stage_status
from ovseg_batch.results import finished_rows
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import Upstream, read_limits
from ovseg_batch.stages.dense import DenseStage
from ovseg_batch.stages.refine import RefineStage
from ovseg_batch.store import StageStore, Workdir
from ovseg_batch.types import Commit, ImageRow, RowResult

LABELS = list(scenes.CLASSES)


@click.group()
def main() -> None:
    """Measure; see the module's first lines."""


@main.command()
@click.option("--images", default=32, show_default=True)
@click.option("--folder", type=click.Path(exists=True, path_type=Path), help="Photographs instead of scenes.")
@click.option("--clip", "clip_model", default="demo", show_default=True)
@click.option("--clip-weights")
@click.option("--sam", "sam_model", default="demo", show_default=True)
@click.option("--sam-weights")
@click.option("--set", "overrides", multiple=True)
@click.option("--repeats", default=3, show_default=True, help="The fastest of so many counts, on both sides.")
def speed(
    images: int,
    folder: Path | None,
    clip_model: str,
    clip_weights: str | None,
    sam_model: str,
    sam_weights: str | None,
    overrides: Sequence[str],
    repeats: int,
) -> None:
    """Images a second of each stage, decoding, reading and committing included, beside the bare model forwards."""
    flags = {
        "labels": LABELS,
        "clip.model": clip_model,
        "clip.weights": clip_weights,
        "sam.model": sam_model,
        "sam.weights": sam_weights,
    }
    config = load_config(overrides=overrides, flags=flags, environment={})
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if folder is None:
            write_scenes(root, scenes.HELD_OUT_SEEDS[5000 : 5000 + images])
            folder = root / "images"
        workdir = Workdir(root / "run")
        workdir.create()
        build_manifest([str(folder)], workdir.manifest, config.manifest.shard_rows)
        manifest = Manifest.open(workdir.manifest)
        stages = planning.plan(config, workdir, manifest, workdir.manifest)
        device = resolve_device(config.run.device)
        rows = [row for shard in range(manifest.shards) for row in manifest.read_shard(shard)]
        click.echo(f"{len(rows)} images, {clip_model} and {sam_model} on {device}, {torch.get_num_threads()} threads")
        totals = [0.0, 0.0]
        for planned in stages:
            stage: Any = planned.job.make_stage()
            stage.setup(config.run.device)
            bare = _bare_clip if planned.name == "dense" else _bare_sam
            forward = bare(stage, config, rows, stages)
            ours, theirs = [], []
            for _ in range(repeats + 1):  # the first one warms up
                ours.append(seconds_of(lambda: run_all(stage, planned, manifest), device))  # noqa: B023
                theirs.append(seconds_of(forward, device))
            fastest = min(ours[1:]), min(theirs[1:])
            totals = [total + part for total, part in zip(totals, fastest, strict=True)]
            _report(planned.name, len(rows), *fastest)
        _report("end to end", len(rows), *totals)


def _report(name: str, images: int, ours: float, bare: float) -> None:
    click.echo(
        f"{name:10}  {images / ours:7.2f} images/s   bare forwards {images / bare:7.2f} images/s   "
        f"ratio {bare / ours:.2f}   overhead {(ours - bare) / images * 1000:.0f} ms an image"
    )


def _decoded(config: Config, rows: Sequence[ImageRow]) -> list[Any]:
    run = config.run
    return [i for _, i in decode_ahead(rows, 2, run.decode_bytes, read_limits(run))]


def _bare_clip(
    stage: DenseStage, config: Config, rows: Sequence[ImageRow], _: Sequence[PlannedStage]
) -> Callable[[], None]:
    """CLIP's own forward on the very windows of the stage, in batches of the stage's size."""
    clip: DenseClip = stage._clip
    by_shape: dict[tuple[int, ...], list[Any]] = {}
    for row, image in zip(rows, _decoded(config, rows), strict=True):
        for window in stage._cut(row, image).windows:
            by_shape.setdefault(window.shape, []).append(window)
    size = config.run.batch_size
    batches = [
        clip.normalise(torch.from_numpy(np.stack(windows[k : k + size])).to(stage._device))
        for windows in by_shape.values()
        for k in range(0, len(windows), size)
        if windows[0].shape[0] == windows[0].shape[1] == stage._window
    ]

    def forward() -> None:
        for batch in batches:
            clip.forward_bare(batch)

    return forward


def _bare_sam(
    stage: RefineStage, config: Config, rows: Sequence[ImageRow], stages: Sequence[PlannedStage]
) -> Callable[[], None]:
    """SAM2's encoder once an image, and its decoder on as many points as the stage will ask."""
    assert stage._sam is not None
    sam: Sam = stage._sam
    batches = [sam.preprocess(image)[None] for image in _decoded(config, rows)]
    shapes = [(image.shape[0], image.shape[1]) for image in _decoded(config, rows)]
    manifest = Manifest.open(stages[1].job.manifest)
    run_all(stage, stages[1], manifest)
    store = stages[1].job.store
    counts = [line["points"] for k in range(manifest.shards) for line in read_results(store.data_path(k, TABLE))]
    rng = np.random.default_rng(0)
    points = [rng.uniform(0, min(shape), (n, 2)).astype(np.float32) for n, shape in zip(counts, shapes, strict=True)]

    def forward() -> None:
        for batch, shape, asked in zip(batches, shapes, points, strict=True):
            if len(asked):
                coarse, fine = sam.forward_bare(batch)
                sam.predict(Embedding(coarse, tuple(fine), shape), asked, chunk=config.run.point_chunk)

    return forward


@main.command()
@click.option("--small", default=200, show_default=True)
@click.option("--large", default=2000, show_default=True)
def memory(small: int, large: int) -> None:
    """Peak memory of a whole run over many images against one over few."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        peaks = []
        for count in (small, large):
            write_scenes(root / str(count), scenes.HELD_OUT_SEEDS[10_000 : 10_000 + count])
            arguments = ["run", str(root / str(count) / "images"), "-o", str(root / f"run{count}")]
            # One window in four, so that many images take minutes; what a window or an image holds is the same.
            arguments += ["--labels", ", ".join(LABELS), "--set", "dense.stride=64", "--workers", "0"]
            seconds, peak = measured(arguments)  # no workers: all in the one process that is measured
            click.echo(f"{count:7} images  {seconds:7.1f} s   peak {peak:7.0f} MiB")
            peaks.append(peak)
        click.echo(f"ratio {peaks[1] / peaks[0]:.3f}")


@main.command("manifest")
@click.option("--rows", default=1_000_000, show_default=True)
def manifest_command(rows: int) -> None:
    """Write, plan and ask about a manifest of so many rows, beside one of a tenth of them."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_scenes(root, scenes.HELD_OUT_SEEDS[:1], jpeg_every=0)
        [image] = (root / "images").iterdir()
        for count in (rows // 10, rows):
            listing = root / f"{count}.csv"
            with listing.open("w") as file:
                file.write("file_name,key\n")
                file.writelines(f"{image},image-{k:09d}\n" for k in range(count))
            out, workdir = root / f"{count}.parquet", root / f"run{count}"
            labels = ["--labels", "sky, car"]
            for name, arguments in (
                ("manifest", ["manifest", str(listing), "-o", str(out)]),
                ("run --dry-run", ["run", str(out), "-o", str(workdir), *labels, "--dry-run"]),
            ):
                seconds, peak = measured(arguments)
                click.echo(f"{count:9} rows  {name:14} {seconds:6.1f} s   peak {peak:6.0f} MiB")
            # A run that has just begun, then one whose every shard is committed.
            measured(
                ["run", str(out), "-o", str(workdir), *labels, "--workers", "0"], {"OVSEG_FAILPOINTS": "dense.row"}, -9
            )
            for state in ("begun", "committed"):
                if state == "committed":
                    _commit_everything(workdir, count)
                seconds, peak = measured(["status", str(workdir)])
                click.echo(f"{count:9} rows  status, {state:9} {seconds:3.1f} s   peak {peak:6.0f} MiB")
        click.echo("(each command starts Python and its libraries; `ovseg-batch --version` alone takes", nl=False)
        click.echo(f" {measured(['--version'])[0]:.1f} s)")


class TrivialStage(GivenMasks):
    """Says of every image that it has one small mask, without looking."""

    name = "trivial"

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        mask = {
            "category": "sky",
            "score": 1.0,
            "bbox": [0.0, 0.0, 2.0, 2.0],
            "area": 4,
            "rle": b"04",
            "source": "dense",
            "confidence": 1.0,
            "margin": 1.0,
        }
        for row in rows:
            values = {"height": 2, "width": 2, "points": 0, "annotations": [mask]}
            yield RowResult(row.row, row.key, values)


@main.command()
@click.option("--small", default=10_000, show_default=True)
@click.option("--large", default=1_000_000, show_default=True)
def rows(small: int, large: int) -> None:
    """Peak memory of manifest, engine, commits and export, with a stage that does nothing, by the number of rows."""
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in (small, large):
            command = [sys.executable, __file__, "run-rows", str(Path(temporary) / str(count)), str(count)]
            seconds, peak = measured_process(command)
            click.echo(f"{count:9} rows  {seconds:7.1f} s   peak {peak:7.0f} MiB")
            peaks.append(peak)
    click.echo(f"ratio {peaks[1] / peaks[0]:.3f}")


@main.command("run-rows", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("count", type=int)
def run_rows(folder: Path, count: int) -> None:
    """What `rows` measures."""
    folder.mkdir()
    listing = folder / "list.csv"
    with listing.open("w") as file:
        file.write("file_name,key\n")
        file.writelines(f"{__file__},image-{k:09d}\n" for k in range(count))
    workdir = Workdir(folder / "run")
    workdir.create()
    build_manifest([str(listing)], workdir.manifest, 256)
    manifest = Manifest.open(workdir.manifest)
    store = workdir.stage("trivial", "0" * 32)
    store.create({})
    job = StageJob(TrivialStage, store, {}, workdir.manifest, threads=1)
    for _ in local.run_stage(job, store.missing(manifest.shards), ["cpu"], in_process=True):
        pass
    write_coco(workdir.annotations, ["sky"], {}, lambda: finished_rows(manifest, store))
    if stage_status(store, manifest.shards).ok != count:
        raise click.ClickException("not every row was done")


def _commit_everything(workdir: Path, rows: int) -> None:
    """Commit records, through the store, as a finished run of so many rows would have."""
    plan = json.loads((workdir / "stages" / "plan.json").read_text())
    for stage in plan["stages"]:
        store = StageStore(workdir / "stages" / stage["folder"], stage["name"], stage["fingerprint"])
        for shard in range(plan["shards"]):
            path = store.data_path(shard, TABLE)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            store.commit_path(shard).parent.mkdir(parents=True, exist_ok=True)
            files = (file_record(path, store.folder),)
            store.write_commit(Commit(stage["name"], stage["fingerprint"], shard, 256, 256, {}, files, 1, 0.0, ""))


for command in (edits, edit_memory, run_edits, generator, exports, report):
    main.add_command(command)


if __name__ == "__main__":
    main()
