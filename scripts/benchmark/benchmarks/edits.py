"""Editing: speed beside bare Pillow, memory over thousands of images, and a generator of full size."""

from __future__ import annotations

import functools
import gzip
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import diffusers
import open_clip
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.measure import measured, measured_process, run_all, seconds_of
from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.engine import local
from ovseg_batch.engine.job import StageJob
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.io import rle
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.tables import read_results
from ovseg_batch.runs import pipeline, planning
from ovseg_batch.stages.answer import make_annotation
from ovseg_batch.stages.base import Resources, Stage, Upstream
from ovseg_batch.stages.edit.stage import EditStage
from ovseg_batch.stages.refine.stage import RefineStage
from ovseg_batch.stages.registry import resolve
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.workdir.committed import read_lines
from ovseg_batch.workdir.progress import stage_status
from ovseg_batch.workdir.store import Workdir

LABELS = list(scenes.CLASSES)


@click.command()
@click.option("--images", default=500, show_default=True)
@click.option("--folder", type=click.Path(exists=True, path_type=Path), help="Photographs instead of scenes.")
@click.option("-c", "--config", "config_file", default="background-removal", show_default=True)
@click.option("--set", "overrides", multiple=True)
@click.option("--repeats", default=3, show_default=True, help="The fastest of so many counts, on both sides.")
def edits(images: int, folder: Path | None, config_file: str, overrides: Sequence[str], repeats: int) -> None:
    """Edits without a generator, committed and all, beside Pillow decoding the inputs and encoding the results.

    Pillow works in as many threads, and is given the decoded results: what is left is reading masks, alpha, colours,
    blending, fsync and commits.
    """
    things = {"labels": LABELS, "edit.keep": list(scenes.THING_NAMES), "clip.model": "demo", "sam.model": "demo"}
    config = load_config(Path(config_file), overrides, things, environment={})
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if folder is None:
            write_scenes(root, scenes.HELD_OUT_SEEDS[6000 : 6000 + images])
            folder = root / "images"
        workdir = Workdir(root / "run")
        without = config.model_copy(update={"edit": config.edit.model_copy(update={"mode": "none"})})
        pipeline.run([str(folder)], workdir, without, progress=False)
        manifest = Manifest.open(workdir.manifest)
        planned = planning.plan(config, workdir, manifest, workdir.manifest)[-1]
        stage: Any = planned.job.make_stage()
        stage.setup("cpu")
        run_all(stage, planned, manifest)
        rows = [row for shard in range(manifest.shards) for row in manifest.read_shard(shard)]
        lines = [line for shard in range(manifest.shards) for line in read_lines(planned.job.store, shard)]
        results = [Image.open(planned.job.store.files / line["files"][0]).copy() for line in lines]
        level, threads = config.edit.compression, config.run.decode_threads

        def bare(row: ImageRow, result: Image.Image | None) -> int:
            """Decode an input and encode it, or the result in its place."""
            with Image.open(row.path) as image:
                decoded = image.convert("RGB")
            file = io.BytesIO()
            (result or decoded).save(file, "PNG", compress_level=level)
            return file.tell()

        def pillow(encoded: Sequence[Image.Image | None]) -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(bare, rows, encoded))

        sides: list[Callable[[], None]] = [
            lambda: run_all(stage, planned, manifest),
            lambda: pillow([None] * len(rows)),
            lambda: pillow(results),
        ]
        cpu = torch.device("cpu")
        counts = [[seconds_of(side, cpu) for side in sides] for _ in range(repeats)]
        ours, inputs, outputs = (min(side) for side in zip(*counts, strict=True))
        pixels = sum(line["height"] * line["width"] for line in lines) / 1e6
        click.echo(f"{len(rows)} images, {pixels:.0f} megapixels, {threads} threads: {len(rows) / ours:.1f} images/s")
        for name, theirs in (("inputs encoded again", inputs), ("results encoded", outputs)):
            click.echo(f"  Pillow, {name:21} {len(rows) / theirs:7.1f} images/s   ratio {theirs / ours:.2f}")


class GivenMasks(Stage):
    """A stage whose masks are the true ones of rendered scenes."""

    name = "refine"
    resources = Resources(accelerator=False)
    columns = RefineStage.columns

    def __init__(self) -> None:
        pass

    def inputs(self) -> dict[str, Any]:
        return {}

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        for row in rows:
            scene = scenes.render(int(row.extra["scene"]))
            height, width = size = scene.classes.shape
            counts = rle.encode_regions(scene.instances)
            masks = [
                make_annotation(counts[thing.instance], size, None, thing.name, 1.0, 1.0, 1.0, False)
                for thing in scene.things
            ]
            yield RowResult(row.row, row.key, {"height": height, "width": width, "points": 0, "annotations": masks})


@click.command("edit-memory")
@click.option("--small", default=500, show_default=True)
@click.option("--large", default=5000, show_default=True)
def edit_memory(small: int, large: int) -> None:
    """Peak memory of cutting out, by the number of images; their masks are given."""
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in (small, large):
            bench = Path(__file__).parent.parent / "bench.py"
            command = [sys.executable, str(bench), "run-edits", str(Path(temporary) / str(count)), str(count)]
            seconds, peak = measured_process(command)
            click.echo(f"{count:6} images  {seconds:6.1f} s   peak {peak:6.0f} MiB")
            peaks.append(peak)
    click.echo(f"ratio {peaks[1] / peaks[0]:.3f}")


@click.command("run-edits", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("count", type=int)
def run_edits(folder: Path, count: int) -> None:
    """What `edit-memory` measures."""
    seeds = scenes.HELD_OUT_SEEDS[7000:7100]
    write_scenes(folder, seeds, jpeg_every=0)
    files = sorted((folder / "images").iterdir())
    listing = folder / "list.csv"
    with listing.open("w") as file:
        file.write("file_name,key,path,scene\n")
        for k in range(count):
            file.write(f"{files[k % 100]},image-{k:06d},{files[k % 100]},{seeds[k % 100]}\n")
    workdir = Workdir(folder / "run")
    workdir.create()
    build_manifest([str(listing)], workdir.manifest, 256)
    manifest = Manifest.open(workdir.manifest)
    masks = workdir.stage("refine", "0" * 32)
    edits = workdir.stage("edit", "0" * 32, upstream={"refine": masks})
    config = load_config("demo", (), {"labels": list(scenes.THING_NAMES), "edit.mode": "cutout"}, environment={})
    for store, make in ((masks, GivenMasks), (edits, functools.partial(EditStage, resolve(config)))):
        store.create({})
        job = StageJob(make, store, workdir.manifest, threads=1)
        for _ in local.run_stage(job, store.missing(manifest.shards), ["cpu"], in_process=True):
            pass
    if stage_status(edits, manifest.shards).ok != count:
        raise click.ClickException("not every image was edited")


@click.command()
@click.option("--steps", default=2, show_default=True)
@click.option("--images", default=1, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to keep the pipeline for another time.")
def generator(steps: int, images: int, device: str, precision: str, folder: Path | None) -> None:
    """`remove` with Stable Diffusion 1.5's inpainting pipeline at full size, with random weights: time and memory."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        model = folder or root / "model"
        if not (model / "model_index.json").exists():
            write_random_pipeline(model)
        megabytes = sum(file.stat().st_size for file in model.rglob("*.safetensors")) / 1e6
        write_scenes(root, scenes.HELD_OUT_SEEDS[7000 : 7000 + images], jpeg_every=0)
        settings = {"edit.mode": "remove", "inpaint.model": str(model), "inpaint.steps": steps, "edit.dilation": 5}
        settings |= {"run.device": device, "run.precision": precision}
        arguments = ["run", str(root / "images"), "-o", str(root / "run"), "--labels", ", ".join(LABELS)]
        arguments += ["--drop", ", ".join(scenes.THING_NAMES)]
        arguments += [f"--set={key}={value}" for key, value in settings.items()]
        seconds, peak = measured([*arguments, "--workers", "0"])
        store = next((root / "run" / "stages").glob("edit-*"))
        lines = read_results(store / "data" / "000" / "000000.parquet")
        painted = sum(len(line["prompts"]) for line in lines if line["status"] == "ok")
        click.echo(
            f"weights {megabytes:.0f} MB on disk; {painted} masks at 512 pixels in {steps} steps with guidance: "
            f"{seconds:.0f} s in all, peak {peak:.0f} MiB"
        )


def write_random_pipeline(folder: Path) -> None:
    """Stable Diffusion 1.5's inpainting pipeline with random weights in fp16, laid out as the hub has it."""
    library: Any = diffusers
    merges = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode().split("\n")[1:48895]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(line.replace(" ", "") for line in merges)]
    words = folder / "words"
    words.mkdir(parents=True)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (words / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(str(words), model_max_length=77)
    shutil.rmtree(words)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    whole = library.StableDiffusionInpaintPipeline(
        vae=library.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        ),
        tokenizer=tokenizer,
        unet=library.UNet2DConditionModel(sample_size=64, in_channels=9, cross_attention_dim=768, attention_head_dim=8),
        scheduler=library.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    torch.set_default_dtype(torch.float32)
    whole.save_pretrained(folder)
