"""A tiny ViTMatte with random weights, in a folder that transformers wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import VitMatteConfig, VitMatteForImageMatting
from transformers.models.vitmatte.image_processing_vitmatte import VitMatteImageProcessor


def tiny_config() -> dict[str, Any]:
    """Return a configuration of two blocks, one with windows and one that sees the whole image."""
    backbone = {
        **{"model_type": "vitdet", "num_channels": 4, "image_size": 64, "pretrain_image_size": 32, "patch_size": 16},
        **{"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "window_size": 2, "mlp_ratio": 2},
        **{"window_block_indices": [0], "residual_block_indices": [1], "out_features": ["stage2"]},
        **{"use_absolute_position_embeddings": True, "use_relative_position_embeddings": True},
    }
    decoder = {"convstream_hidden_sizes": [8, 8, 8], "fusion_hidden_sizes": [8, 8, 8, 8]}
    return {"backbone_config": backbone, "hidden_size": 16, **decoder}


def save_tiny_vitmatte(folder: Path) -> Path:
    """Write the tiny ViTMatte."""
    return save_vitmatte(folder, tiny_config())


def save_vitmatte(folder: Path, config: dict[str, Any]) -> Path:
    """Write a ViTMatte with random weights whose alphas cover the whole range."""
    torch.manual_seed(5)
    model: Any = VitMatteForImageMatting(VitMatteConfig.from_dict(config)).eval()
    last = model.decoder.matting_head.matting_convs[3]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            elif parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
        logits = model(torch.randn(1, 4, 64, 64)).alphas.logit()
        last.weight.mul_(3 / logits.std())
        last.bias.copy_(-3 * logits.mean() / logits.std())
    model.save_pretrained(folder)
    VitMatteImageProcessor().save_pretrained(folder)
    return folder
