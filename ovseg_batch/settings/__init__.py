"""The settings of a run: the tree and its meanings, the syntax of labels, and messages for wrong values."""

from __future__ import annotations

from ovseg_batch.settings.attentions import ATTENTIONS, CORRCLIP, REGION_LIMITED, SPLICED, WITH_DINO
from ovseg_batch.settings.models import ClipConfig, InpaintConfig, Sam3Config, SamConfig
from ovseg_batch.settings.running import ManifestConfig, RunConfig
from ovseg_batch.settings.tree import Config, DenseConfig, EditConfig, Label, RefineConfig

__all__ = [
    "ATTENTIONS",
    "CORRCLIP",
    "REGION_LIMITED",
    "SPLICED",
    "WITH_DINO",
    "ClipConfig",
    "Config",
    "DenseConfig",
    "EditConfig",
    "InpaintConfig",
    "Label",
    "ManifestConfig",
    "RefineConfig",
    "RunConfig",
    "Sam3Config",
    "SamConfig",
]
