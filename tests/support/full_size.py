"""Weights of full size and without meaning, in the files in which their publishers distribute them."""

from __future__ import annotations

import io

import open_clip
import torch
from safetensors.torch import save

from ovseg_batch.models import presets, sam

CLIP, SAM, SMALL_SAM = "openai-b16", "sam2.1-large", "sam2.1-tiny"  # the first two are of the default preset


def repositories() -> dict[str, dict[str, bytes]]:
    """Return repository → name of a file → its content. 1.7 GB."""
    clip = presets.CLIP[CLIP]
    torch.manual_seed(0)
    tower = open_clip.create_model(clip.architecture, load_weights=False).state_dict()
    found = {clip.hub: {"open_clip_model.safetensors": save(tower)}}
    for name in (SAM, SMALL_SAM):
        preset, file = presets.SAM[name], io.BytesIO()
        torch.save({"model": sam.build(preset.architecture).state_dict()}, file)
        found[preset.hub] = {preset.file: file.getvalue()}
    return found
