#!/usr/bin/env python
"""Train a network on the masks of a run: segment a folder, export class maps, train on them.

python pseudo_labels.py photos out --labels "road; car; sky" --steps 1000
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import ovseg_batch

SIDE = 96  # pixels of the square that the network sees


def load_pair(image: Path, labels: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image as (3, SIDE, SIDE) in [0, 1] and its class map as (SIDE, SIDE)."""
    pixels = np.array(Image.open(image).convert("RGB").resize((SIDE, SIDE)))
    classes = np.array(Image.open(labels).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255, torch.from_numpy(classes).long()


def train(folder: Path, exported: Path, steps: int) -> float:
    """Train on every image that has a class map, and return the last loss."""
    about = json.loads((exported / "classes.json").read_text())
    files = [(path, exported / path.relative_to(folder).with_suffix(".png")) for path in sorted(folder.rglob("*.*"))]
    pairs = [load_pair(image, labels) for image, labels in files if labels.exists()]
    pixels, classes = map(torch.stack, zip(*pairs, strict=True))
    # your own network goes here
    network = nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, len(about["classes"]), 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps):
        batch = torch.randint(len(pairs), (4,))
        loss = nn.functional.cross_entropy(network(pixels[batch]), classes[batch], ignore_index=about["ignore"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


if __name__ == "__main__":  # worker processes import this file again, and must not start a run
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("workdir", type=Path, help="where the run is kept")
    parser.add_argument("--labels", required=True, help="the classes")
    parser.add_argument("--steps", type=int, default=1000, help="default: 1000")
    parser.add_argument("-c", "--config", default="pseudo-labels", help="preset or YAML file (default: pseudo-labels)")
    given = parser.parse_args()
    maps = Path(f"{given.workdir}-labels")
    run = ovseg_batch.run(given.folder, given.labels, given.workdir, config=given.config)
    run.export("semantic", maps, options=ovseg_batch.Options(ignore_below=0.5))  # uncertain pixels are ignored
    print(f"last loss: {train(given.folder, maps, given.steps):.3f}")
