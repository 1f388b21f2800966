"""A tiny DINO with random weights, in a folder that timm wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

ARCHITECTURE = "vit_base_patch16_224.dino"


def save_tiny_dino(folder: Path, patch: int = 16, side: int = 224) -> Path:
    """Write a DINO of two blocks of width 32, with patches of `patch` pixels, for images of `side` pixels."""
    sizes: dict[str, Any] = {"img_size": side, "patch_size": patch, "embed_dim": 32, "depth": 2, "num_heads": 2}
    torch.manual_seed(6)
    model = timm.create_model(ARCHITECTURE, num_classes=0, **sizes)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    config = {"architecture": ARCHITECTURE, "num_classes": 0, "pretrained_cfg": {}, "model_args": sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
