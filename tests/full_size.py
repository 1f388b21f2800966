"""Weights of full size and without meaning, in the files in which their publishers distribute them."""

from __future__ import annotations

import io

import open_clip
import torch
from safetensors.torch import save

from ovseg_batch.models import presets, sam

CLIP, SAM = "openai-b16", "sam2.1-large"  # of the default preset


def repositories() -> dict[str, dict[str, bytes]]:
    """Return repository → name of a file → its content, for the two models of the default preset. 1.5 GB."""
    clip, sam2 = presets.CLIP[CLIP], presets.SAM[SAM]
    torch.manual_seed(0)
    tower = open_clip.create_model(clip.architecture, load_weights=False).state_dict()
    segmenter = io.BytesIO()
    torch.save({"model": sam.build(sam2.architecture).state_dict()}, segmenter)
    return {
        clip.hub: {"open_clip_model.safetensors": save(tower)},
        sam2.hub: {sam2.file: segmenter.getvalue()},
    }
