"""A tiny SAM of the first version with random weights, in a folder that transformers wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SamConfig, SamModel


def save_tiny_sam1(folder: Path, side: int = 128) -> Path:
    """Write a SAM of two blocks and two heads for images of `side` pixels."""
    sizes = {"image_size": side, "patch_size": 16}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "global_attn_indexes": [1]}
    config = SamConfig(
        vision_config={**sizes, **vision, "window_size": 3, "output_channels": 16, "num_pos_feats": 8},
        prompt_encoder_config={**sizes, "hidden_size": 16},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    torch.manual_seed(5)
    model = SamModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
        rating = model.mask_decoder.iou_prediction_head.proj_out
        rating.weight.mul_(0.1)
        rating.bias.fill_(0.5)
    model.save_pretrained(folder)
    return folder
