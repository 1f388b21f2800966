"""A tiny OWLv2 with random weights, in a folder that transformers wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Owlv2Config, Owlv2ForObjectDetection

SPREAD = 12.0  # of the logits, so that some words score high on some boxes and none on all


def save_tiny_owl(folder: Path, side: int = 96) -> Path:
    """Write an OWLv2 of two blocks and two heads for images of `side` pixels, with patches of 16."""
    blocks = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Owlv2Config(
        projection_dim=24,
        text_config={"hidden_size": 24, **blocks},
        vision_config={"hidden_size": 32, "image_size": side, "patch_size": 16, **blocks},
    )
    torch.manual_seed(8)
    model = Owlv2ForObjectDetection(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.class_head.logit_scale.bias.fill_(SPREAD)
        model.class_head.logit_shift.weight.mul_(0.1)
        model.box_head.dense2.bias[2:] += 1.5  # boxes of several patches
    model.save_pretrained(folder)
    return folder
