"""A tiny SAM 3 with random weights, in a folder with the layout of the published one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Sam3Config, Sam3LiteTextConfig, Sam3LiteTextModel, Sam3Model

QUERIES = 20


def tiny_config(kind: str = "Sam3", side: int = 112) -> Any:
    """Return the config of a SAM 3 of two blocks in each part, for images of `side` pixels."""
    vit = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    places = {"image_size": side, "window_size": 4, "global_attn_indexes": [1], "pretrain_image_size": 56}
    part = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_layers": 2}
    text: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16 if kind == "Sam3LiteText" else 32}
    vision = {"model_type": "sam3_vit_model", **vit, **places}
    sections: dict[str, Any] = {
        "vision_config": {"model_type": "sam3_vision_model", "backbone_config": vision, "fpn_hidden_size": 16},
        "text_config": text if kind == "Sam3LiteText" else {"model_type": "clip_text_model", **text},
        "geometry_encoder_config": part,
        "detr_encoder_config": part,
        "detr_decoder_config": {**part, "num_queries": QUERIES},
        "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2},
    }
    return {"Sam3": Sam3Config, "Sam3LiteText": Sam3LiteTextConfig}[kind](**sections)


def tiny_model(kind: str = "Sam3", side: int = 112, seed: int = 9) -> Any:
    """Return a SAM 3 whose scores and masks differ between words, queries and images."""
    torch.manual_seed(seed)
    model = {"Sam3": Sam3Model, "Sam3LiteText": Sam3LiteTextModel}[kind](tiny_config(kind, side)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif "norm" not in name:
                parameter.normal_(std=0.3)
        for part in (model.dot_product_scoring.text_proj, model.dot_product_scoring.query_proj):
            part.weight.mul_(3)
        model.detr_decoder.presence_head.layer3.weight.mul_(4)
        model.detr_decoder.query_embed.weight.normal_(std=2)
        text = model.text_encoder if kind == "Sam3LiteText" else model.text_encoder.text_model
        text.embeddings.token_embedding.weight.normal_(std=2)
    return model


def save_tiny_sam3(folder: Path, kind: str = "Sam3", side: int = 112, published: bool = True) -> Path:
    """Write a tiny SAM 3.

    Args:
        published: write the keys of the detector under `detector_model.` beside one of a tracker, as on the hub.
    """
    folder.mkdir(exist_ok=True)
    model = tiny_model(kind, side)
    model.config.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if published:
        tree = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": tree}))
        state = {f"detector_model.{name}": value for name, value in state.items()}
        state["tracker_model.mask_decoder.iou_token.weight"] = torch.zeros(1, 4)
    save_file(state, folder / "model.safetensors")
    return folder
