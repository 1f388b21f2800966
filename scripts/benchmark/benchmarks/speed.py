"""The judge of speed: each stage against the bare forwards of its models, where its time goes, and a reference."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pycocotools import mask as coco

from benchmarks.measure import high_water, run_all, seconds_of
from benchmarks.reference import run_reference
from benchmarks.stopwatch import MODELS, Stopwatch
from ovseg_batch import scenes
from ovseg_batch.config import dump_config, load_config
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.io.ahead import decode_ahead
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.tables import TABLE, read_results
from ovseg_batch.methods.vocabulary import TEMPLATES
from ovseg_batch.models.device import keep_memory, resolve_device
from ovseg_batch.models.encoders import blocks_of
from ovseg_batch.models.sam import Embedding, Sam
from ovseg_batch.runs import pipeline, planning
from ovseg_batch.runs.planning import PlannedStage
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import read_limits
from ovseg_batch.stages.dense import DenseStage
from ovseg_batch.stages.refine.stage import RefineStage
from ovseg_batch.types import ImageRow
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

WORDS = "person; cat; cup: coffee cup, mug; sky; road; grass; wall; motorbike; rocket; coin"


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of these commands: which images, which models."""
    for option in (
        click.option("--images", default=32, show_default=True, help="Scenes, where no folder is given."),
        click.option("--folder", type=click.Path(exists=True, path_type=Path), help="Photographs instead of scenes."),
        click.option("--clip", "clip_model", default="demo", show_default=True),
        click.option("--clip-weights"),
        click.option("--sam", "sam_model", default="demo", show_default=True),
        click.option("--sam-weights"),
        click.option("--labels", help="Scenes' own; for photographs ten words."),
        click.option("--set", "overrides", multiple=True),
        click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too."),
    ):
        command = option(command)
    return command


def _config(options: dict[str, Any], overrides: Sequence[str]) -> Config:
    labels = options["labels"] or (list(scenes.CLASSES) if options["folder"] is None else WORDS)
    return load_config("demo", overrides=overrides, flags={"labels": labels, **model_flags(options)}, environment={})


def model_flags(options: dict[str, Any]) -> dict[str, Any]:
    """The settings behind the options that name models."""
    names = ("clip_model", "clip_weights", "sam_model", "sam_weights")
    return {name.replace("_", "."): options[name] for name in names}


def chosen_folder(options: dict[str, Any], root: Path) -> Path:
    if options["folder"] is not None:
        return Path(options["folder"])
    write_scenes(root, scenes.HELD_OUT_SEEDS[5000 : 5000 + options["images"]])
    return root / "images"


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.cpu.get_capabilities()["cpu_name"]
    return f"{name}, {torch.get_num_threads()} threads, {platform.system()}, torch {torch.__version__}"


@click.command()
@shared_options
@click.option("--repeats", default=3, show_default=True, help="The fastest of so many counts, on both sides.")
@click.option("--baseline", type=click.Path(exists=True, path_type=Path), help="An earlier --json to compare with.")
def speed(
    repeats: int, baseline: Path | None, overrides: Sequence[str], json_file: Path | None, **options: Any
) -> None:
    """Images a second of each stage, decoding, reading and committing included, beside the bare model forwards."""
    config = _config(options, overrides)
    device = resolve_device(config.run.device)
    if device.type == "cpu":
        keep_memory()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = chosen_folder(options, root)
        workdir = Workdir(root / "run")
        workdir.create()
        build_manifest([str(folder)], workdir.manifest, config.manifest.shard_rows)
        manifest = Manifest.open(workdir.manifest)
        stages = planning.plan(config, workdir, manifest, workdir.manifest)
        rows = [row for shard in range(manifest.shards) for row in manifest.read_shard(shard)]
        click.echo(f"{len(rows)} images, {options['clip_model']} and {options['sam_model']}; {machine(device)}")
        figures: dict[str, Any] = {"machine": machine(device), "images": len(rows), "stages": {}}
        for planned in stages:
            figures["stages"][planned.name] = _stage(planned, config, rows, stages, manifest, device, repeats)
            _print(planned.name, len(rows), figures["stages"][planned.name])
        both = [sum(part[side] for part in figures["stages"].values()) for side in ("seconds", "floor")]
        figures["all"] = {"seconds": both[0], "floor": both[1], "ratio": both[1] / both[0]}
        _print("end to end", len(rows), figures["all"])
    figures["peak_mib"] = high_water(os.getpid())
    click.echo(f"peak {figures['peak_mib']:.0f} MiB, both sides in one process")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    if baseline is not None:
        _compare(figures, json.loads(baseline.read_text()))


def _stage(
    planned: PlannedStage,
    config: Config,
    rows: Sequence[ImageRow],
    stages: Sequence[PlannedStage],
    manifest: Manifest,
    device: torch.device,
    repeats: int,
) -> dict[str, Any]:
    """Seconds of a stage and of its models alone, the fastest of `repeats`, and its parts in a run of their own."""
    stage: Any = planned.job.make_stage()
    stage.setup(config.run.device)
    bare = _bare_clip if planned.name == "dense" else _bare_sam
    forward = bare(stage, config, rows, stages)
    ours, theirs = [], []
    for _ in range(repeats + 1):  # the first one warms up
        ours.append(seconds_of(lambda: run_all(stage, planned, manifest), device))
        theirs.append(seconds_of(forward, device))
    watch = Stopwatch(device)
    with watch.running():
        whole = seconds_of(lambda: run_all(stage, planned, manifest), device)
    parts: dict[str, float] = dict(watch.spent.most_common())
    parts["rest"] = whole - sum(parts.values())
    return {
        "precision": stage._precision(),
        "seconds": min(ours[1:]),
        "floor": min(theirs[1:]),
        "ratio": min(theirs[1:]) / min(ours[1:]),
        "parts": parts,
        "beside": dict(watch.beside.most_common()),
        "models": sum(parts.get(name, 0.0) for name in MODELS) / whole,
    }


def _print(name: str, images: int, figures: dict[str, Any]) -> None:
    ours, bare = figures["seconds"], figures["floor"]
    click.echo(
        f"{name:10}  {images / ours:7.2f} images/s   bare forwards {images / bare:7.2f} images/s   "
        f"ratio {bare / ours:.2f}   overhead {(ours - bare) / images * 1000:.0f} ms an image"
    )
    if "parts" in figures:
        parts = "  ".join(f"{part} {1000 * spent / images:.1f}" for part, spent in figures["parts"].items())
        click.echo(f"    {figures['precision']}; ms an image: {parts}; in the models {figures['models']:.0%}")
        if figures["beside"]:
            beside = "  ".join(f"{part} {1000 * spent / images:.1f}" for part, spent in figures["beside"].items())
            click.echo(f"    in other threads: {beside}")


def _compare(now: dict[str, Any], before: dict[str, Any]) -> None:
    if now["machine"] != before["machine"]:
        click.echo(f"the baseline is another machine's ({before['machine']}): only its ratios can be compared")
    for name, part in (*now["stages"].items(), ("all", now["all"])):
        old = before["all"] if name == "all" else before["stages"].get(name)
        if old is not None:
            faster = old["seconds"] / before["images"] / (part["seconds"] / now["images"])
            click.echo(f"{name:10}  ratio {old['ratio']:.2f} → {part['ratio']:.2f}; {faster:.2f} × as fast as then")


def _decoded(config: Config, rows: Sequence[ImageRow]) -> list[Any]:
    run = config.run
    return [i for _, i in decode_ahead(rows, 2, run.decode_bytes, read_limits(run))]


def _bare_clip(
    stage: DenseStage, config: Config, rows: Sequence[ImageRow], _: Sequence[PlannedStage]
) -> Callable[[], None]:
    """CLIP's plain forward, nothing replaced, on the very windows of the stage, in batches of the stage's size."""
    clip = blocks_of(stage._clip)
    by_shape: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    for row, image in zip(rows, _decoded(config, rows), strict=True):
        for window in stage._cut(row, image, image.shape[:2]).windows:
            by_shape[window.shape].append(window)
    size = config.run.batch_size
    batches = [
        clip.normalise(torch.from_numpy(np.stack(windows[k : k + size])).to(stage._device))
        for windows in by_shape.values()
        for k in range(0, len(windows), size)
    ]

    def forward() -> None:
        for batch in batches:
            clip.image_features(batch)

    return forward


def _bare_sam(
    stage: RefineStage, config: Config, rows: Sequence[ImageRow], stages: Sequence[PlannedStage]
) -> Callable[[], None]:
    """SAM2's encoder once an image, and its decoder on as many points as the stage gives it."""
    assert stage._sam is not None
    sam: Sam = stage._sam
    images = _decoded(config, rows)
    batches, shapes = [sam.preprocess(image)[None] for image in images], [image.shape[:2] for image in images]
    manifest = Manifest.open(stages[1].job.manifest)
    run_all(stage, stages[1], manifest)
    store = stages[1].job.store
    counts = [line["points"] for k in range(manifest.shards) for line in read_results(store.data_path(k, TABLE))]
    rng = np.random.default_rng(0)
    points = [rng.uniform(0, min(shape), (n, 2)).astype(np.float32) for n, shape in zip(counts, shapes, strict=True)]

    def forward() -> None:
        for batch, shape, prompts in zip(batches, shapes, points, strict=True):
            if len(prompts):
                coarse, *fine = (sam._ready(part) for part in _flat(sam.forward_bare(batch)))
                sam.predict(Embedding(coarse, tuple(fine), shape), prompts)

    return forward


def _flat(features: tuple[torch.Tensor, list[torch.Tensor]]) -> list[torch.Tensor]:
    return [features[0], *features[1]]


@click.command()
@shared_options
@click.option("--automatic", default=0, show_default=True, help="Images of the automatic form too; it takes minutes.")
def reference(overrides: Sequence[str], json_file: Path | None, automatic: int, **options: Any) -> None:
    """End to end beside a script that does the same an image at a time (see reference.py)."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = chosen_folder(options, root)
        config = _config(options, overrides)
        templates = config.dense.templates
        plain = TEMPLATES[templates] if isinstance(templates, str) else templates
        dense = config.dense.model_copy(update={"templates": plain})
        config_file = root / "config.yaml"
        config_file.write_text(dump_config(config.model_copy(update={"dense": dense})))
        workdir = Workdir(root / "run")
        pipeline.run([str(folder)], workdir, load_config(config_file, environment={}), progress=False)
        images = Manifest.open(workdir.manifest).rows
        ours = sum(commit.seconds for store in Results.open(workdir).stores for commit in store.commits())
        theirs = _reference(folder, config_file, root / "reference.json", [])
        overlap = agreement(theirs["masks"], json.loads(workdir.annotations.read_text()))
        seconds = sum(theirs["seconds"].values())
        click.echo(f"{images} images, {machine(resolve_device(config.run.device))}")
        click.echo(f"ours       {ours / images:8.3f} s an image")
        click.echo(
            f"reference  {seconds / images:8.3f} s an image   {seconds / ours:.1f} ×   mean mask IoU {overlap:.4f}"
        )
        figures = {"images": images, "ours": ours, "reference": seconds, "iou": overlap}
        if automatic:
            slow = _reference(folder, config_file, root / "auto.json", ["--automatic", "--most", str(automatic)])
            each = sum(slow["seconds"].values()) / len(slow["seconds"])
            click.echo(f"automatic  {each:8.3f} s an image   {each / (ours / images):.1f} ×   ({automatic} images)")
            figures["automatic_each"] = each
        if json_file is not None:
            json_file.write_text(json.dumps(figures, indent=2) + "\n")


def _reference(folder: Path, config_file: Path, out: Path, options: Sequence[str]) -> dict[str, Any]:
    """Run `run-reference` in a separate process and return its output."""
    bench = str(Path(__file__).parent.parent / "bench.py")
    subprocess.run(
        [sys.executable, bench, "run-reference", str(folder), str(config_file), str(out), *options], check=True
    )
    answer: dict[str, Any] = json.loads(out.read_text())
    return answer


def agreement(theirs: dict[str, list[dict[str, Any]]], ours: dict[str, Any]) -> float:
    """Of every mask of the reference the IoU with the best of ours of its label, on average."""
    labels = {one["id"]: one["name"] for one in ours["categories"]}
    names = {image["id"]: Path(image["file_name"]).name for image in ours["images"]}
    mine: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for one in ours["annotations"]:
        mine[names[one["image_id"]], labels[one["category_id"]]].append(one["segmentation"])
    best = []
    for name, masks in theirs.items():
        for mask in masks:
            rivals = mine[name, mask["label"]]
            best.append(float(coco.iou([mask["rle"]], rivals, [0] * len(rivals)).max()) if rivals else 0.0)
    return float(np.mean(best))


COMMANDS = (speed, reference, run_reference)
