"""The sizes of a SAM 3, by its name or from the config file of a folder. No model library is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.models import presets
from ovseg_batch.models.located import folder_config
from ovseg_batch.models.spec import FOLDER

#: `model_type` of the detector in a config file → name of its classes in transformers, without `Model` and `Config`
KINDS = {"sam3": "Sam3", "sam3_lite_text": "Sam3LiteText"}


@dataclass(frozen=True, slots=True)
class Sam3Layout:
    """The sizes of a SAM 3; the defaults are those of the published model.

    Attributes:
        kind: name of its classes in transformers, without `Model` and `Config`.
        side: side of the images that it was trained on, in pixels.
        patch: side of a patch in pixels.
        width: length of an image token.
        context: most tokens of a prompt.
        config: the tree of its config file. Empty: the defaults of transformers.
        config_hash: hash of the config file. Empty without a file.
    """

    kind: str
    side: int
    patch: int
    width: int
    context: int
    config: dict[str, Any]
    config_hash: str


PUBLISHED = Sam3Layout("Sam3", 1008, 14, 1024, 32, {}, "")


def sam3_layout(model: str) -> Sam3Layout:
    """Return the sizes of a SAM 3.

    Args:
        model: a preset, or `local-dir:` and a folder that transformers wrote.

    Raises:
        UsageError: the name is unknown, or the folder has no readable config file of a SAM 3.
    """
    if model in presets.SAM3:
        return PUBLISHED
    if not model.startswith(FOLDER):
        raise UsageError(
            f"There is no SAM 3 model {model!r}.{nearest(model, presets.SAM3)} Names: {', '.join(presets.SAM3)}; "
            f"or {FOLDER}FOLDER for a SAM 3 that transformers has saved."
        )
    layout, own = folder_config(model, lambda tree: _read(tree.get("detector_config") or tree), "of a SAM 3")
    return replace(layout, config_hash=own)


def _read(tree: dict[str, Any]) -> Sam3Layout:
    """Return the sizes in the tree of a config file; a size that it leaves out has transformers' default."""
    usual, vision = PUBLISHED, tree["vision_config"]["backbone_config"]
    side, patch = (
        value if isinstance(value, int) else max(value)
        for value in (vision.get("image_size", usual.side), vision.get("patch_size", usual.patch))
    )
    width = int(vision.get("hidden_size", usual.width))
    kind = KINDS[tree["model_type"]]
    positions = tree["text_config"].get("max_position_embeddings", usual.context)
    return Sam3Layout(kind, side, patch, width, min(usual.context, int(positions)), tree, "")
