"""The activation of a CLIP: with the other one of GELU and QuickGELU, every value would be wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ovseg_batch.errors import UsageError
from ovseg_batch.models.layouts import HUB_CONFIG, is_openai_layout


def gelu_of_file(file: str, own_config: bool) -> bool | None:
    """Return whether weights without a tag need QuickGELU, or None if that is unknown.

    The config beside the file decides, then the file's name and entries. With `own_config`, the config is the
    architecture, and only the file is checked.
    """
    beside = Path(file).with_name(HUB_CONFIG)
    if beside.is_file() and not own_config:
        try:
            return bool(json.loads(beside.read_text(encoding="utf-8")).get("model_cfg", {}).get("quick_gelu", False))
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"Cannot read {beside} ({error}). Fetch it again, or remove it.") from None
    return True if re.search(r"openai|metaclip|dfn", Path(file).name.lower()) or is_openai_layout(Path(file)) else None


def refuse_wrong_gelu(architecture: str, quick: bool, needed: bool | None, weights: str) -> None:
    """Raise UsageError if the weights were trained with the other activation, which would make all values wrong.

    OpenAI's, MetaCLIP's and DFN's weights need QuickGELU.

    Args:
        quick: whether the architecture has QuickGELU.
        needed: whether the weights need it, or None if unknown.
    """
    if needed is not None and needed != quick:
        twin = f"{architecture}-quickgelu" if needed else architecture.removesuffix("-quickgelu")
        raise UsageError(
            f"The weights {weights} were trained with {'QuickGELU' if needed else 'GELU'}, and {architecture} has "
            f"{'QuickGELU' if quick else 'GELU'}: every value would be wrong. Set clip.model: {twin}."
        )
