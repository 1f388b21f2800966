#!/usr/bin/env python
"""Tune MasQCLIP's query projections f_Q′ on masks of base classes, CLIP frozen, and hold them against the untuned.

    tune_masq.py train --minutes 15     # writes checkpoints/demo/masq.safetensors; again, it goes on
    tune_masq.py compare                # mask AP on base and novel classes, zero-shot tokens against tuned

Masks come from scenes: those of base classes with their names (the annotations that a user has), and, by progressive
distillation, proposals that SAM2 rates well and that miss every base mask, as masks of something else: MasQCLIP's
"background", a word of CLIP's own. Novel classes are never named. Source: Xu et al., ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from demo_models.clock import Clock
from safetensors.torch import save_file
from torch import Tensor

from ovseg_batch import datasets, scenes
from ovseg_batch.config import load_config
from ovseg_batch.evaluate.run import evaluate
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.io import rle
from ovseg_batch.methods.class_scores import query_feature
from ovseg_batch.methods.vocabulary import TEMPLATES
from ovseg_batch.models import zoo
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.mask_tokens import MaskTokens, touched_patches
from ovseg_batch.runs import pipeline
from ovseg_batch.stages.propose import ProposeStage
from ovseg_batch.stages.registry import resolve
from ovseg_batch.workdir.store import Workdir

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).resolve().parents[2]
NOVEL = ("boat", "flower", "sun", "person")  # never named while tuning
BASE = tuple(name for name in scenes.CLASSES if name not in NOVEL)
OBJECT_SCORE = 0.8  # proposals that SAM2 rates higher are annotations too, if they miss every base mask
MISSES = 0.1  # IoU with a base mask up to which a proposal misses it
SCALE = 100.0  # CLIP's own
BATCH = 8  # scenes
OTHERS = 0.1  # weight of the masks of something else, as published
SCENES, PROPOSED = 2000, 400  # training scenes, and how many of them get proposals
STEP = 1e-3


@dataclass(frozen=True, slots=True)
class Sample:
    """A scene as CLIP sees it, the patches of its masks, and their classes (an index into BASE, len(BASE): others)."""

    image: Array
    touched: Tensor
    labels: Tensor


@click.group()
def main() -> None:
    """MasQCLIP's tuning on rendered scenes."""


@main.command()
@click.option("--minutes", default=15.0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "checkpoints" / "demo" / "masq.safetensors")
@click.option("--state", type=click.Path(path_type=Path), default=ROOT / ".train", show_default=False)
@click.option("--threads", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def train(minutes: float, out: Path, state: Path, threads: int, seed: int) -> None:
    """Learn the projections and the tokens' position embedding; nothing else moves."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    state.mkdir(parents=True, exist_ok=True)
    clip = DenseClip.load(zoo.resolve("clip", "demo-token"), torch.device("cpu"), "fp32")
    clip.model.requires_grad_(False)
    words = text(clip, BASE)
    rest = text(clip, ["background"])
    samples = [sample(clip, scene, extra) for scene, extra in annotated()]
    tokens = MaskTokens(clip.visual, tuned=True)
    optimiser = torch.optim.AdamW(tokens.parameters(), STEP, weight_decay=1e-4)
    clock = Clock(
        state / "masq.pt", minutes, lambda: {"tokens": tokens.state_dict(), "optimiser": optimiser.state_dict()}
    )
    saved = clock.resume()
    if saved is not None:
        tokens.load_state_dict(saved["tokens"])
        optimiser.load_state_dict(saved["optimiser"])
    rng = np.random.default_rng([seed, clock.step])
    recent = [0.0]
    for _ in clock.steps(lambda: f"loss {np.mean(recent[-200:]):.3f}"):
        for group in optimiser.param_groups:
            group["lr"] = clock.rate(STEP)
        batch = [samples[k] for k in rng.integers(len(samples), size=BATCH)]
        loss = step_loss(clip, tokens, batch, torch.cat([words, rest]))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        recent.append(loss.item())
    save_file({name: value.half().contiguous() for name, value in tokens.published_state().items()}, out)
    click.echo(out)


def text(clip: DenseClip, names: Sequence[str]) -> Tensor:
    """(T, D), over the templates of the pipeline's default."""
    return torch.stack(
        [query_feature(clip.encode_text([t.format(name) for t in TEMPLATES["openai80"]])) for name in names]
    )


def step_loss(clip: DenseClip, tokens: MaskTokens, batch: list[Sample], words: Tensor) -> Tensor:
    """Cross-entropy of every mask of the batch; masks of one image go through CLIP together."""
    images = clip.normalise(torch.from_numpy(np.stack([one.image for one in batch])))
    most = max(len(one.labels) for one in batch)
    touched = torch.stack([F.pad(one.touched, (0, 0, 0, 0, 0, most - len(one.labels))) for one in batch])
    features = tokens(images, touched)
    losses, weights = [], torch.tensor([*[1.0] * len(BASE), OTHERS])
    for k, one in enumerate(batch):
        logits = SCALE * features[k, : len(one.labels)] @ words.T
        losses.append(F.cross_entropy(logits, one.labels, weights, reduction="sum"))
    return torch.stack(losses).sum() / torch.cat([weights[one.labels] for one in batch]).sum()


def annotated() -> Iterator[tuple[scenes.Scene, list[Array]]]:
    """Training scenes; for some of them SAM2's proposals that it rates well and that miss every base mask."""
    config = load_config(
        "demo",
        overrides=["propose.predicted_iou=0.6", "propose.stability=0.7", "propose.points_per_side=8"],
        flags={"labels": "dataset:scenes"},
        environment={},
    )
    stage = ProposeStage(resolve(config))
    stage.setup("cpu")
    for number, seed in enumerate(scenes.TRAIN_SEEDS[20_000 : 20_000 + SCENES]):
        scene = scenes.render(seed)
        known = [mask for mask, _ in base_masks(scene)]
        extra = []
        for proposal in stage._propose(scene.image).proposals if number < PROPOSED else ():
            mask = rle.decode(proposal.rle, *scene.classes.shape)
            if proposal.predicted_iou >= OBJECT_SCORE and all(overlap(mask, one) <= MISSES for one in known):
                extra.append(mask)
        if known or extra:
            yield scene, extra


def base_masks(scene: scenes.Scene) -> list[tuple[Array, int]]:
    """Every thing and every kind of stuff of a base class."""
    masks = [(scene.instances == t.instance, BASE.index(t.name)) for t in scene.things if t.name in BASE]
    for label in np.unique(scene.classes[scene.instances == 0]):
        mask = (scene.classes == label) & (scene.instances == 0)
        if mask.mean() > 0.001:
            masks.append((mask, BASE.index(scenes.CLASSES[label])))
    return masks


def overlap(a: Array, b: Array) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def sample(clip: DenseClip, scene: scenes.Scene, extra: list[Array]) -> Sample:
    side = clip.image_size
    grid = (side // clip.patch, side // clip.patch)
    masks = [*base_masks(scene), *((mask, len(BASE)) for mask in extra)]
    touched = torch.cat([touched_patches(torch.from_numpy(mask)[None], grid) for mask, _ in masks])
    image = cv2.resize(scene.image, (side, side), interpolation=cv2.INTER_AREA)
    return Sample(image, touched, torch.tensor([label for _, label in masks]))


@main.command()
@click.option("--images", default=200, show_default=True, help="Held-out scenes.")
@click.option("--first", default=0, show_default=True)
@click.option("--tuned", type=click.Path(path_type=Path), default=ROOT / "checkpoints" / "demo" / "masq.safetensors")
@click.option("--root", type=click.Path(path_type=Path), default=ROOT / ".ablations", help="The folder of ablate.py.")
def compare(images: int, first: int, tuned: Path, root: Path) -> None:
    """Mask AP of things, base and novel apart, all of them in the vocabulary."""
    root = root / f"{first}-{images}"
    if not (root / "images").is_dir():
        write_scenes(root, scenes.HELD_OUT_SEEDS[first : first + images], jpeg_every=0)
    dataset = replace(datasets.load("scenes"), novel=NOVEL)
    workdir = Workdir(root / "run")
    for name, file in (("zero-shot", None), ("tuned", str(tuned))):
        flags = {
            "labels": "dataset:scenes",
            "method": "proposals",
            "clip.model": "demo-token",
            "propose.predicted_iou": 0.6,
            "propose.stability": 0.7,
            "classify.scorer": "mask-tokens",
            "classify.tuned": file,
        }
        pipeline.run([str(root / "images")], workdir, load_config("demo", flags=flags, environment={}), progress=False)
        found = evaluate(workdir, dataset, root).figures()
        cells = [f"{key} {found[key]:.3f}" for key in ("mask AP base", "mask AP novel", "mIoU base", "mIoU novel")]
        click.echo(f"{name:10} " + "  ".join(cells))


if __name__ == "__main__":
    main()
