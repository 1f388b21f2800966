"""Which architectures of open_clip can compute dense maps, decided from their JSON before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CUSTOM_BLOCKS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
POOLING = ("tok", "avg")


def misfit(config: Mapping[str, Any]) -> str | None:
    """Return why an architecture cannot compute dense maps, or None if it can.

    Dense maps need open_clip's `VisionTransformer` with standard blocks, whose patch tokens go through the last norm
    and the projection as the class token does.

    Args:
        config: `model_cfg` of open_clip, with `vision_cfg`.
    """
    vision = config.get("vision_cfg")
    if not isinstance(vision, Mapping):
        return "its config has no vision_cfg"
    if vision.get("timm_model_name"):
        return f"its image tower is {vision['timm_model_name']} of timm"
    if isinstance(vision.get("layers"), list | tuple):
        return "its image tower is a ResNet"
    if config.get("multimodal_cfg"):
        return "it is a CoCa"
    if vision.get("attentional_pool"):
        return "it pools patches by attention"
    if any(vision.get(name) for name in CUSTOM_BLOCKS) or vision.get("block_type") not in (None, "default"):
        return "its blocks are not CLIP's"
    if vision.get("pool_type", "tok") not in POOLING:
        return f"its pooling is {vision['pool_type']}"
    return None
