"""A model of a GPU that this machine does not have: how many CPU cores and workers keep it busy.

The stages `dense` and `refine` run over photographs in worker processes, as on a GPU. The calls of the GPU take their
time on an H100 (paper_times.py): a worker holds the lock of the device and sleeps, and gets stored outputs
(paper_scenes.py). So the CPU has its real work, and the GPU has none.

This machine has few cores. `--cores-per-gpu` slows the device down by its number of cores / the cores here, so that the
cores here feed it as so many would feed a real one. A single thread is then faster, compared with the device, than it
would be: `--cores-per-gpu` of the cores here (no slowing down) shows what one worker can do.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.paper_scenes import Scene, store_scene
from benchmarks.paper_stages import RECORD, Paper, PaperDense, PaperRefine, paper_stage
from benchmarks.paper_times import Forwards, forwards
from benchmarks.speed import machine
from benchmarks.words import write_resized
from ovseg_batch import datasets, scenes
from ovseg_batch.config import load_config
from ovseg_batch.engine import local
from ovseg_batch.engine.job import StageJob
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.models import zoo
from ovseg_batch.runs import planning
from ovseg_batch.settings import Config
from ovseg_batch.stages import registry
from ovseg_batch.workdir.store import Workdir

MOST_POINTS = 64  # the largest components of the random maps
RENDERED = 4  # scenes where no folder is given
SHARES = (0.8, 0.9)  # of a device's time, for which the cores are computed


@click.command("paper-gpu")
@click.option("--folder", type=click.Path(exists=True, path_type=Path), help="Photographs instead of scenes.")
@click.option("--clip", "clip_model", default="ViT-B-16-quickgelu", show_default=True)
@click.option("--sam", "sam_model", default="sam2.1-large", show_default=True)
@click.option("--megapixels", default="0.2,12", show_default=True, help="Sizes that the images are brought to.")
@click.option("--images", default="400,48", show_default=True, help="Number of images of each size.")
@click.option("--words", default="20,171", show_default=True, help="Numbers of words.")
@click.option("--workers", default="1", show_default=True, help="Numbers of worker processes on the GPU.")
@click.option("--threads", default=1, show_default=True, help="run.threads of each worker.")
@click.option("--cores-per-gpu", type=float, help="Cores that feed the GPU. [default: those of this machine]")
@click.option("--times", type=click.Choice(["published", "least"]), default="published", show_default=True)
@click.option("--launch", default=5.0, show_default=True, help="Microseconds of the CPU to launch an operator.")
@click.option("--set", "overrides", multiple=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too.")
def paper_gpu(
    folder: Path | None,
    megapixels: str,
    images: str,
    words: str,
    workers: str,
    cores_per_gpu: float | None,
    times: str,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Busy share of an H100 on paper, images/s, and core-milliseconds of the CPU per image."""
    cases = [*zip(megapixels.split(","), images.split(","), strict=False)]
    if megapixels.count(",") != images.count(","):
        raise click.UsageError("--megapixels and --images: give as many numbers of images as sizes.")
    cores = len(os.sched_getaffinity(0))
    slower = (cores_per_gpu or cores) / cores
    figures: dict[str, Any] = {"machine": machine(torch.device("cpu")), "cores": cores, "slower": slower, "runs": []}
    click.echo(f"{figures['machine']}, {cores} cores; the device takes {slower:.2f} × its time")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        source = folder or _rendered(root / "rendered")
        for size, count in cases:
            photographs = write_resized(source, root / size, float(size))
            calls, sources = _calls(options, photographs, times == "published")
            click.echo(f"\n{size} MP\n{sources}")
            for number in map(int, words.split(",")):
                case = Case(root / f"{size} {number}", photographs, int(count), number, options)
                paper = case.prepare(calls, slower)
                click.echo(f"\n{size} MP, {number} words: {case.described(paper)}")
                for processes in map(int, workers.split(",")):
                    found = case.run(paper, processes)
                    figures["runs"].append({"megapixels": float(size), "words": number, "times": times, **found})
                    click.echo(_line(found))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class Case:
    """Runs over images of one size with one number of words.

    Attributes:
        root: a folder for the stored outputs and the workdirs.
        photographs: a folder of different images.
        images: number of images of a run; photographs repeat.
        words: number of labels.
        options: options of the command: models, threads, launch, overrides.
    """

    root: Path
    photographs: Path
    images: int
    words: int
    options: Mapping[str, Any]

    def config(self, workers: int) -> Config:
        """Return the settings of a run."""
        flags = {
            "labels": "; ".join(_labels(self.options["clip_model"], self.words)),
            "background": "none",
            "refine.max_points": MOST_POINTS,
            "manifest.shard_rows": -(-self.images // workers),
            "run.device": "cpu",
            "run.threads": self.options["threads"],
        }
        for kind in ("clip", "sam"):
            flags |= {f"{kind}.model": self.options[f"{kind}_model"], f"{kind}.weights": _weights(self.options, kind)}
        return load_config("prompted", overrides=self.options["overrides"], flags=flags, environment={})

    def prepare(self, calls: Forwards, slower: float) -> Paper:
        """Store the outputs of the models for every photograph."""
        run, folder = registry.resolve(self.config(1)), self.root / "paper"
        dense, refine, sizes = PaperDense(run), PaperRefine(run), _sizes(self.photographs)
        for number, size in enumerate(sizes):
            store_scene(folder / str(number), dense, refine, size, number, calls.slower)
        return Paper(folder, len(sizes), calls, self.options["launch"] * 1e-6, slower)

    def run(self, paper: Paper, workers: int) -> dict[str, Any]:
        """Run both stages, and return the figures of each and of both."""
        config, folder = self.config(workers), self.root / f"{workers} workers"
        listed = _repeated(self.photographs, folder / "images", self.images)
        workdir = Workdir(folder / "run")
        workdir.create()
        build_manifest([str(listed)], workdir.manifest, config.manifest.shard_rows)
        manifest = Manifest.open(workdir.manifest)
        resolved = registry.resolve(config)
        stages = {}
        for planned in planning.plan(config, workdir, manifest, workdir.manifest):
            planned.job.store.create(planned.inputs)
            make = functools.partial(paper_stage, resolved, planned.name, paper)
            job = dataclasses.replace(planned.job, make_stage=make)
            stages[planned.name] = self._stage(job, list(range(manifest.shards)), paper)
        both = {key: sum(stage[key] for stage in stages.values()) for key in ("wall", "busy", "cpu")}
        return {
            "workers": workers,
            "load": os.getloadavg()[0],
            "stages": {name: {**stage, **self._figures(stage, paper)} for name, stage in stages.items()},
            **both,
            **self._figures(both, paper),
        }

    def _stage(self, job: StageJob, shards: list[int], paper: Paper) -> dict[str, Any]:
        """Run a stage, a worker for each shard.

        Returns:
            Seconds of the wall clock, of the device and of the CPU, and of the CPU's parts. The slowest step of an
            image, which one thread of a worker computes, and how many workers keep the device busy in spite of it.
        """
        failed, ended = Counter[str](), 0.0
        for commit in local.run_stage(job, shards, ["cpu"] * len(shards)):
            failed.update(commit.failed)
            ended = time.monotonic()
        if failed:
            raise click.ClickException(f"{job.store.stage}: images failed ({dict(failed)})")
        records = []
        for file in paper.folder.glob(f"*{RECORD}"):
            records.append(json.loads(file.read_text()))
            file.unlink()
        cpu = sum(record["cpu"] for record in records)
        parts, steps = _summed(records, "parts"), _summed(records, "steps")
        parts["images, tables and arrays"] = cpu - sum(parts.values())
        began = min(record["began"] for record in records)
        busy = sum(record["busy"] for record in records)
        slowest = max(steps, key=lambda name: steps[name])
        ms = 1000 * steps[slowest] / self.images
        workers_per_gpu = steps[slowest] * paper.slower / busy
        step = {"slowest_step": slowest, "slowest_step_ms": ms, "workers_per_busy_gpu": workers_per_gpu}
        return {"wall": ended - began, "busy": busy, "cpu": cpu, "parts": parts, **step}

    def _figures(self, seconds: Mapping[str, Any], paper: Paper) -> dict[str, float]:
        """Return what a GPU of full speed would have: shares, images/s, and milliseconds per image."""
        of_device = seconds["busy"] / paper.slower
        return {
            "busy_share": seconds["busy"] / seconds["wall"],
            "images_per_second": self.images / seconds["wall"] * paper.slower,
            "core_ms": 1000 * seconds["cpu"] / self.images,
            "device_ms": 1000 * of_device / self.images,
            "cores_per_busy_gpu": seconds["cpu"] / of_device,
        }

    def described(self, paper: Paper) -> str:
        """Describe the images and the calls of an image."""
        found = [Scene.open(paper.folder / str(number)) for number in range(paper.scenes)]
        windows, points, operators, of_map, of_vote = np.mean(
            [
                (
                    len(scene.windows),
                    len(scene.masks),
                    scene.label_map.operators,
                    1000 * scene.label_map.seconds,
                    1000 * scene.vote.seconds,
                )
                for scene in found
            ],
            axis=0,
        )
        return (
            f"{self.images} images, {windows:.0f} windows, {points:.0f} points, label map {of_map:.2f} ms in "
            f"{operators:.0f} operators, vote {of_vote:.2f} ms"
        )


def _line(found: Mapping[str, Any]) -> str:
    """Describe the figures of a run."""
    cores = ", ".join(f"{share * found['cores_per_busy_gpu']:.1f} for {share:.0%}" for share in SHARES)
    lines = [
        f"workers: {found['workers']}, load {found['load']:.1f}, busy share {found['busy_share']:.2f}, "
        f"{found['images_per_second']:.1f} images/s; an image takes {found['core_ms']:.1f} core-ms and "
        f"{found['device_ms']:.1f} ms of the device; cores: {cores}"
    ]
    for name, stage in found["stages"].items():
        images = stage["cpu"] / stage["core_ms"] * 1000
        parts = ", ".join(f"{part} {1000 * spent / images:.1f}" for part, spent in stage["parts"].items())
        lines.append(
            f"    {name:6} busy share {stage['busy_share']:.2f}, {stage['core_ms']:.1f} core-ms, "
            f"{stage['device_ms']:.1f} ms of the device; slowest step: {stage['slowest_step']}, "
            f"{stage['slowest_step_ms']:.1f} ms; core-ms: {parts}"
        )
    return "\n".join(lines)


def _summed(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return the sum of each entry of a mapping that every record has."""
    names = dict.fromkeys(name for record in records for name in record[key])
    return {name: sum(record[key].get(name, 0.0) for record in records) for name in names}


def _calls(options: Mapping[str, Any], photographs: Path, published: bool) -> tuple[Forwards, str]:
    """Return the calls of both models, and where their times come from."""
    clip, sam = (zoo.resolve(kind, options[f"{kind}_model"], _weights(options, kind)) for kind in ("clip", "sam"))
    return forwards(clip, sam, _sizes(photographs)[0], published)


def _weights(options: Mapping[str, Any], kind: str) -> str | None:
    return None if options[f"{kind}_model"] == "demo" else "random:0"


def _labels(clip: str, count: int) -> list[str]:
    known = list(scenes.CLASSES) if clip == "demo" else list(datasets.load("coco-stuff").classes)
    if not 1 <= count <= len(known):
        raise click.UsageError(f"--words: {count} is not between 1 and {len(known)}.")
    return known[:count]


def _sizes(photographs: Path) -> list[tuple[int, int]]:
    """Return (H, W) of the images of a folder."""
    sizes = []
    for path in sorted(photographs.iterdir()):
        with Image.open(path) as image:
            sizes.append((image.height, image.width))
    return sizes


def _rendered(folder: Path) -> Path:
    write_scenes(folder, scenes.HELD_OUT_SEEDS[5000 : 5000 + RENDERED])
    return folder / "images"


def _repeated(photographs: Path, folder: Path, count: int) -> Path:
    """Write links to so many images, the photographs in turn, so that row k has photograph k modulo their number."""
    folder.mkdir(parents=True)
    files = sorted(photographs.iterdir())
    for number in range(count):
        source = files[number % len(files)]
        (folder / f"{number:06d}{source.suffix}").hardlink_to(source)
    return folder
