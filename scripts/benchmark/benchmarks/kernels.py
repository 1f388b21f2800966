"""The models' forwards as their libraries compute them, and as they are computed here, side by side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.measure import seconds_of
from benchmarks.speed import machine
from ovseg_batch.methods.vocabulary import TEMPLATES
from ovseg_batch.models import clip, sam, zoo
from ovseg_batch.models.device import autocast, keep_memory, resolve_device

WINDOWS, PROMPTS = 16, 16


@click.command()
@click.option("--clip", "clip_model", default="ViT-B-16-quickgelu", show_default=True)
@click.option("--sam", "sam_model", default="sam2.1-tiny", show_default=True)
@click.option("--weights", default="random:0", show_default=True)
@click.option("--repeats", default=3, show_default=True)
def kernels(**options: Any) -> None:
    """Milliseconds of CLIP, SAM2's encoder and its decoder, theirs and ours; on a CPU with and without memory kept."""
    bench = str(Path(__file__).parent.parent / "bench.py")
    arguments = [f"--{name.removesuffix('_model')}={value}" for name, value in options.items()]
    click.echo(machine(resolve_device("auto")))
    for keeping in ("--returned", "--kept"):
        click.echo(f"memory that tensors give back is {keeping.removeprefix('--')}")
        subprocess.run([sys.executable, bench, "run-kernels", *arguments, keeping], check=True)


@click.command("run-kernels", hidden=True)
@click.option("--clip", "clip_model")
@click.option("--sam", "sam_model")
@click.option("--weights")
@click.option("--repeats", type=int)
@click.option("--kept/--returned", "kept")
@torch.inference_mode()
def run_kernels(clip_model: str, sam_model: str, weights: str, repeats: int, kept: bool) -> None:
    """What `kernels` measures, in a process that keeps its memory or does not."""
    device = resolve_device("auto")
    if kept:
        keep_memory()
    clip_spec, sam_spec = zoo.resolve("clip", clip_model, weights), zoo.resolve("sam", sam_model, weights)
    for kind in ("fp32", "bf16"):
        for name, share, theirs, ours in (*_clip(clip_spec, device, kind), *_sam(sam_spec, device, kind)):
            times = []
            for work in (theirs, ours):
                work()
                times.append(min(seconds_of(work, device) for _ in range(repeats)) / share * 1000)
            click.echo(f"  {kind}  {name:24} {times[0]:8.1f} → {times[1]:8.1f} ms   {times[0] / times[1]:.1f} ×")


#: what is timed: its name, how many of them a call does, theirs, ours
Pair = tuple[str, int, Callable[[], object], Callable[[], object]]


def _clip(spec: zoo.ModelSpec, device: torch.device, kind: str) -> list[Pair]:
    model, tokenize, *_ = clip.build(spec)
    own: Any = model.float().eval().to(device)
    ours = clip.DenseClip.load(spec, device, kind)
    windows = torch.rand(WINDOWS, 3, spec.window, spec.window, device=device)

    def theirs() -> None:
        with autocast(device, kind):
            own.encode_image(windows)

    pairs: list[Pair] = [("CLIP, a window", WINDOWS, theirs, lambda: ours.image_features(windows))]
    if kind == "fp32":  # as text is in every precision
        prompts = [template.format("tree") for template in TEMPLATES["openai80"]]
        tokens = tokenize(prompts).to(device)
        pairs.append(("CLIP, 80 prompts", 1, lambda: own.encode_text(tokens), lambda: ours.encode_text(prompts)))
    return pairs


def _sam(spec: zoo.ModelSpec, device: torch.device, kind: str) -> list[Pair]:
    model: Any = sam.load_own(spec).eval().to(device)
    ours = sam.Sam.load(spec, device, kind)
    image = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    batch = ours.preprocess(image)[None]
    points = np.random.default_rng(1).uniform(0, 512, (PROMPTS, 2)).astype(np.float32)
    [embedding] = ours.embed([image])

    def encode() -> Any:
        with autocast(device, kind):
            return model.forward_image(batch)["backbone_fpn"]

    pyramid = encode()
    prompts = torch.from_numpy(points[:, None]).to(device) * (ours.image_size / 512)
    step = ours.points.items

    def decode() -> None:
        with autocast(device, kind):
            for k in range(0, PROMPTS, step):
                few = prompts[k : k + step]
                kinds = torch.ones(len(few), 1, dtype=torch.int32, device=device)
                sparse, rough = model.sam_prompt_encoder(points=(few, kinds), boxes=None, masks=None)
                model.sam_mask_decoder(
                    image_embeddings=pyramid[-1],
                    image_pe=model.sam_prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=rough,
                    multimask_output=True,
                    repeat_image=True,
                    high_res_features=pyramid[:-1],
                )

    return [
        ("SAM2's encoder, an image", 1, encode, lambda: ours.forward_bare(batch)),
        ("SAM2's decoder, a point", PROMPTS, decode, lambda: ours.predict(embedding, points)),
    ]
