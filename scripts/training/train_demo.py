#!/usr/bin/env python
"""Train the embedded models on rendered scenes: the same command resumes, and `--minutes` is the whole budget.

    train_demo.py clip-image --minutes 40     # images and captions only
    train_demo.py clip-region --minutes 12    # goes on from clip-image, with captions of sub-rectangles
    train_demo.py clip-token --minutes 30     # from there on, a CLIP whose class token represents the image
    train_demo.py sam --minutes 40
    train_demo.py inpaint-vae --minutes 20    # the inpainting pipeline's autoencoder
    train_demo.py inpaint --minutes 60        # its UNet and text model

Each leaves fp16 safetensors in checkpoints/demo/ and its state in --state, and uses --threads cores.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A malloc that gives memory back after every step spends half the time in the kernel.
if os.environ.get("MALLOC_TRIM_THRESHOLD_") is None:
    os.environ.update(MALLOC_TRIM_THRESHOLD_="4000000000", MALLOC_TOP_PAD_="400000000", MALLOC_MMAP_MAX_="0")
    os.execv(sys.executable, [sys.executable, *sys.argv])

import click
import cv2
import torch
from demo_models import clip
from demo_models.pool import open_pool

MODELS = ["pool", "clip-image", "clip-region", "clip-token", "sam", "inpaint-vae", "inpaint"]
ROOT = Path(__file__).resolve().parents[2]


@click.command()
@click.argument("model", type=click.Choice(MODELS))
@click.option("--minutes", type=float, default=40.0, show_default=True)
@click.option("--state", type=click.Path(path_type=Path), default=ROOT / ".train", show_default=False)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "checkpoints" / "demo", show_default=False)
@click.option("--scenes", type=int, default=6000, show_default=True, help="How many scenes the pool holds.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--peak", type=float, default=1e-3, show_default=True, help="Of SAM2's learning rate, a cosine.")
def main(model: str, minutes: float, state: Path, out: Path, scenes: int, threads: int, seed: int, peak: float) -> None:
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    pool = open_pool(state, scenes)
    if model == "sam":
        from demo_models import sam

        sam.Trainer(pool, out, state, minutes, seed, peak).train()
    elif model == "inpaint-vae":
        from demo_models import autoencoder

        autoencoder.Trainer(pool, state, minutes, seed).train()
    elif model == "inpaint":
        from demo_models import inpaint

        inpaint.Trainer(pool, out, state, minutes, seed).train()
    elif model != "pool":
        clip.Trainer(pool, out, state, model.removeprefix("clip-"), minutes, seed).train()


if __name__ == "__main__":
    main()
