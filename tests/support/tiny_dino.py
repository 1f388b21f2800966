"""A tiny DINO with random weights, in a folder that timm wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

ARCHITECTURE = "vit_base_patch16_224.dino"


def save_tiny_dino(folder: Path) -> Path:
    """Write a DINO of two blocks of width 32 with patches of 16 pixels."""
    sizes: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    torch.manual_seed(6)
    model = timm.create_model(ARCHITECTURE, **sizes)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    args = {**sizes, "img_size": 224, "patch_size": 16}
    config = {"architecture": ARCHITECTURE, "pretrained_cfg": {}, "model_args": args}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
