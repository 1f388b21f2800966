"""The sizes of a TIPSv2, by its name or from the config file of a folder. No model library is imported.

There are two layouts of the config file: that of the published repositories, and that of transformers. The weights have
the same names in both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.errors import UsageError
from ovseg_batch.models import presets
from ovseg_batch.models.layouts import HUB_CONFIG
from ovseg_batch.models.spec import FOLDER

ARCHITECTURE = "tipsv2/"  # prefix of the architecture of a named TIPSv2
MODEL_TYPE = "tipsv2"
CONFIG = "config.json"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")  # of SentencePiece, as published; as transformers writes it
#: `vision_fn` of a published config → blocks, attention heads, and hidden width of the MLPs as a multiple of the width
VISION: dict[str, tuple[int, int, float]] = {
    "vit_base": (12, 12, 4.0),
    "vit_large": (24, 16, 4.0),
    "vit_so400m": (27, 16, 4304 / 1152),
    "vit_giant2": (40, 24, 4.0),
}
#: sizes that a config of transformers may leave out
USUAL_VISION = {"image_size": 448, "patch_size": 14, "hidden_size": 768}
USUAL_CONTEXT = 64
USUAL_TEMPERATURE = 0.005065968260169029


@dataclass(frozen=True, slots=True)
class Tipsv2Layout:
    """The sizes of a TIPSv2.

    Attributes:
        side: side of the images that it was trained on, in pixels.
        patch: side of a patch in pixels.
        width: length of a feature.
        context: most tokens of a prompt.
        logit_scale: factor of the similarities of image and text, the inverse of its temperature.
        config: the tree of a config file of transformers.
        config_hash: hash of the config file. Empty for a named model.
    """

    side: int
    patch: int
    width: int
    context: int
    logit_scale: float
    config: dict[str, Any]
    config_hash: str


def is_tipsv2(model: str) -> bool:
    """Return whether a name or `local-dir:FOLDER` means a TIPSv2."""
    if model in presets.CLIP:
        return presets.CLIP[model].architecture.startswith(ARCHITECTURE)
    folder = Path(model.removeprefix(FOLDER))
    if not model.startswith(FOLDER) or (folder / HUB_CONFIG).exists():
        return False
    try:
        return bool(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"] == MODEL_TYPE)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def tipsv2_layout(model: str) -> Tipsv2Layout:
    """Return the sizes of a TIPSv2.

    Args:
        model: a name or `local-dir:FOLDER` for which `is_tipsv2` holds.

    Raises:
        UsageError: the config file has no sizes of a TIPSv2.
    """
    if model in presets.CLIP:
        return _read(presets.TIPSV2_CONFIGS[presets.CLIP[model].architecture], "")
    file = Path(model.removeprefix(FOLDER)) / CONFIG
    try:
        text = file.read_text(encoding="utf-8")
        return _read(json.loads(text), hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UsageError(f"{model}: {file} is no readable config of a TIPSv2 ({error!r}).") from None


def _read(tree: Mapping[str, Any], config_hash: str) -> Tipsv2Layout:
    config = _of_transformers(tree) if "vision_fn" in tree else dict(tree)
    vision = {**USUAL_VISION, **(config.get("vision_config") or {})}
    side, patch = (_side(vision[name]) for name in ("image_size", "patch_size"))
    context = int((config.get("text_config") or {}).get("max_position_embeddings", USUAL_CONTEXT))
    scale = 1 / float(config.get("temperature_init_value", USUAL_TEMPERATURE))
    return Tipsv2Layout(side, patch, int(vision["hidden_size"]), context, scale, config, config_hash)


def _of_transformers(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of transformers for a config in the layout of the published repositories."""
    blocks, heads, ratio = VISION[tree["vision_fn"]]
    return {
        "vision_config": {
            "hidden_size": tree["embed_dim"],
            "num_hidden_layers": blocks,
            "num_attention_heads": heads,
            "mlp_ratio": ratio,
            "image_size": tree["img_size"],
            "patch_size": tree["patch_size"],
            "num_register_tokens": tree["num_register_tokens"],
            "use_swiglu_ffn": tree["ffn_layer"] != "mlp",
        },
        "text_config": {
            "hidden_size": tree["text_hidden_size"],
            "intermediate_size": tree["text_mlp_dim"],
            "num_attention_heads": tree["text_num_heads"],
            "num_hidden_layers": tree["text_num_layers"],
            "vocab_size": tree["vocab_size"],
            "max_position_embeddings": tree["max_len"],
        },
        "temperature_init_value": tree["temperature"],
    }


def _side(value: Any) -> int:
    return value if isinstance(value, int) else int(max(value))
