"""Small models with random weights, in folders that the settings can name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file


def small_dino(folder: Path) -> str:
    """Write a DINO of two blocks with patches of 8 pixels, trained at 32, and return the name of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    torch.manual_seed(3)
    model = timm.create_model("vit_base_patch8_224", pretrained=False, num_classes=0, **shape)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    config = {"architecture": "vit_base_patch8_224", "num_classes": 0, "model_args": shape, "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"
