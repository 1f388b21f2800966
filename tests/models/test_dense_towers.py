"""Which architectures of open_clip compute dense maps is decided from their JSON as their towers would decide it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

from ovseg_batch.errors import UsageError
from ovseg_batch.models import open_clip_tables, zoo
from ovseg_batch.models.dense_towers import CUSTOM_BLOCKS, misfit

CONFIGS = {name: open_clip_tables.architecture(name) or {} for name in open_clip_tables.architectures()}
OWN = [name for name, config in CONFIGS.items() if not config["vision_cfg"].get("timm_model_name")]


@pytest.mark.parametrize("name", OWN)
def test_the_config_decides_as_the_built_tower(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        tower: Any = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), False)
    fits = isinstance(tower, VisionTransformer) and tower.attn_pool is None
    fits = fits and all(isinstance(block, ResidualAttentionBlock) for block in tower.transformer.resblocks)
    assert (misfit(config) is None) == (fits and "multimodal_cfg" not in config)


def test_the_page_about_methods_counts_the_architectures() -> None:
    reasons = Counter(None if (why := misfit(config)) is None else why.split()[-1] for config in CONFIGS.values())
    assert (len(CONFIGS), reasons[None], reasons["timm"], reasons["ResNet"], reasons["CoCa"]) == (144, 52, 78, 10, 4)


@pytest.mark.parametrize("name", CUSTOM_BLOCKS)
def test_towers_with_other_blocks_do_not_fit(name: str) -> None:
    vision = CONFIGS["ViT-B-32"]["vision_cfg"]
    with torch.device("meta"):
        tower: Any = _build_vision_tower(64, CLIPVisionCfg(**vision, **{name: True}), False)
    assert not all(isinstance(block, ResidualAttentionBlock) for block in tower.transformer.resblocks)
    assert misfit({"vision_cfg": {**vision, name: True}}) == "its blocks are not CLIP's"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "its image tower is a ResNet"),
        ("coca_ViT-B-32", "it is a CoCa"),
        ("ViT-B-16-SigLIP", "its image tower is vit_base_patch16_siglip_224 of timm"),
    ],
)
def test_other_towers_are_refused_before_they_are_built(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' cannot compute dense maps: {reason}.*docs/methods.md"):
        zoo.resolve("clip", name, "random:0")
