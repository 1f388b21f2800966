"""Resolve the names of models to their files and hashes. This module downloads nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io.hashing import file_hash
from ovseg_batch.models import open_clip_tables, pipelines, presets
from ovseg_batch.models.dense_towers import misfit
from ovseg_batch.models.gelu import gelu_of_file, refuse_wrong_gelu
from ovseg_batch.models.hub_cache import cached
from ovseg_batch.models.layouts import HUB_CONFIG
from ovseg_batch.models.located import (
    WEIGHT_SUFFIXES,
    cached_file,
    checkpoint_folders,
    embedded_file,
    folder_config,
    folder_weights,
    given_weights,
    local_file,
    missing,
    preset_weights,
)
from ovseg_batch.models.presets import Kind, Preset
from ovseg_batch.models.sam3_layout import sam3_layout
from ovseg_batch.models.spec import FOLDER, RANDOM, SAM1, ModelSpec
from ovseg_batch.models.tipsv2_layout import TOKENIZERS, is_tipsv2, tipsv2_layout
from ovseg_batch.models.vitmatte_layout import vitmatte_layout

HUB = "hf-hub:"  # prefix of an architecture: a CLIP of the hub
DINO_WIDTH = 768  # length of a feature of the named DINO models
SAM1_FILES = {"sam1/vit_b": "sam_vit_b_01ec64.pth"}  # architecture → name under which Meta publishes its weights
UNKNOWN_LICENCE = "see the weights' own card"

__all__ = [
    "FOLDER",
    "HUB",
    "RANDOM",
    "UNKNOWN_LICENCE",
    "WEIGHT_SUFFIXES",
    "ModelSpec",
    "checkpoint_folders",
    "embedded_file",
    "is_embedded",
    "known_labels",
    "resolve",
    "resolve_inpainting",
]


def resolve(kind: Kind, model: str, weights: str | None = None) -> ModelSpec:
    """Return the model that a config names.

    Args:
        kind: `clip`, `sam`, `dino`, `owl`, `sam3` or `matte`.
        model: a preset; or an open_clip architecture, `local-dir:` or `hf-hub:`; or a config of the sam2 package; or,
            for a TIPSv2, the other kinds and a SAM of the first version, `local-dir:` and a folder that timm or
            transformers wrote.
        weights: a local file, an open_clip tag, or `random:SEED`. None: the weights of the preset.

    Raises:
        UsageError: the name is unknown, or no weights are given for an architecture.
        MissingModels: weights or a tokenizer are not on this machine.
    """
    return RESOLVERS[kind](model, presets.named(kind).get(model), weights)


def _resolve_clip(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    if is_tipsv2(model):
        return _resolve_tipsv2(model, preset, weights)
    if preset and preset.embedded:
        return _resolve_demo_clip(model, preset, weights)
    architecture = preset.architecture if preset else model
    config = _clip_config(model, architecture)
    side = config["vision_cfg"]["image_size"]
    side = side if isinstance(side, int) else min(side)
    tag = weights or (preset.tag if preset else "")
    quick = bool(config.get("quick_gelu", False))
    known = open_clip_tables.pretrained(architecture, tag)
    refuse_wrong_gelu(architecture, quick, known.quick_gelu if known else None, tag)
    located = _locate_clip(model, architecture, tag)
    if known is None and not located.startswith(RANDOM):
        refuse_wrong_gelu(architecture, quick, gelu_of_file(located, ":" in architecture), tag or located)
    if not architecture.startswith(FOLDER):
        _require_text_files(architecture, config)
    licence = preset.licence if preset else UNKNOWN_LICENCE
    own = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
    return ModelSpec("clip", model, architecture, located, side, side * 3 // 2, licence, quick, own, *_shape(config))


def _resolve_demo_clip(model: str, preset: Preset, weights: str | None) -> ModelSpec:
    found = weights or str(embedded_file(preset.file))
    config = _demo_config(preset.architecture)["model_cfg"]
    side, shape = config["vision_cfg"]["image_size"], _shape(config)
    own = file_hash(embedded_file(preset.architecture)) + file_hash(embedded_file("demo/bpe.txt.gz"))
    return ModelSpec(
        *("clip", model, preset.architecture, given_weights(found), side, "native", preset.licence, False, own, *shape),
        logit_scale=preset.logit_scale,
    )


def _resolve_sam(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    architecture = preset.architecture if preset else model
    if architecture.startswith((SAM1, FOLDER)):
        return _resolve_sam1(model, preset, weights)
    licence = preset.licence if preset else UNKNOWN_LICENCE
    if preset is None and not re.fullmatch(r"configs/sam2(\.1)?/[\w.+]+\.yaml", model):
        raise UsageError(
            f"There is no SAM2 model {model!r}.{nearest(model, presets.SAM)} Names: {', '.join(presets.SAM)}; "
            "or a config of the sam2 package such as configs/sam2.1/sam2.1_hiera_l.yaml."
        )
    if weights is not None:
        found = given_weights(weights)
    elif preset is None:
        raise UsageError(f"sam.model {model!r} is an architecture; name its file with sam.weights.")
    elif preset.embedded:
        found = str(embedded_file(preset.file))
    else:
        found = preset_weights(model, preset, preset.file, None)
    if not (preset and preset.embedded):
        return ModelSpec("sam", model, architecture, found, 1024, "native", licence)
    own = embedded_file(architecture)
    config = yaml.safe_load(own.read_text(encoding="utf-8"))["model"]
    side, width = config["image_size"], config["image_encoder"]["neck"]["d_model"]
    return ModelSpec("sam", model, architecture, found, side, "native", licence, None, file_hash(own), width=width)


def _resolve_sam1(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    if preset is not None:
        found = preset_weights(model, preset, SAM1_FILES[preset.architecture], weights, "SAM weights")
        return ModelSpec("sam", model, preset.architecture, found, 1024, "native", preset.licence)

    def sizes(config: Any) -> tuple[int, int]:
        vision = config["vision_config"]
        return int(vision["image_size"]), int(vision["output_channels"])

    (side, width), own = folder_config(model, sizes, "of a SAM")
    found = folder_weights(model, weights)
    return ModelSpec("sam", model, model, found, side, "native", UNKNOWN_LICENCE, None, own, width=width)


def _resolve_dino(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    if preset is not None:
        [[patch, side]] = [map(int, found) for found in re.findall(r"patch(\d+)_(\d+)", preset.architecture)]
        found = preset_weights(model, preset, f"{preset.architecture}.safetensors", weights)
        return ModelSpec(
            *("dino", model, preset.architecture, found, side, "native", preset.licence, None, "", patch, DINO_WIDTH)
        )
    if not model.startswith(FOLDER):
        raise UsageError(
            f"There is no DINO model {model!r}.{nearest(model, presets.DINO)} Names: {', '.join(presets.DINO)}; "
            f"or {FOLDER}FOLDER for a ViT that timm has saved."
        )
    names = ("img_size", "patch_size", "embed_dim")
    needed = f"with {', '.join(names[:-1])} and {names[-1]} in its model_args"
    sizes, own = folder_config(model, lambda tree: [int(tree["model_args"][name]) for name in names], needed)
    side, patch, width = sizes
    found = folder_weights(model, weights)
    return ModelSpec("dino", model, model, found, side, "native", UNKNOWN_LICENCE, None, own, patch, width)


def _resolve_owl(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    if preset is not None:
        config, own, architecture = presets.OWL_CONFIGS[preset.architecture], "", preset.architecture
        found = preset_weights(model, preset, f"{preset.hub.partition('/')[2]}.safetensors", weights)
    elif model.startswith(FOLDER):
        architecture, (config, own) = model, folder_config(model, dict[str, Any], "of an OWLv2")
        found = folder_weights(model, weights)
    else:
        raise UsageError(
            f"There is no OWLv2 model {model!r}.{nearest(model, presets.OWL)} Names: {', '.join(presets.OWL)}; "
            f"or {FOLDER}FOLDER for an OWLv2 that transformers has saved."
        )
    vision, licence = config.get("vision_config", {}), preset.licence if preset else UNKNOWN_LICENCE
    side, patch = (int(vision.get(*key)) for key in (("image_size", 768), ("patch_size", 16)))  # of transformers
    width = int(config.get("text_config", {}).get("hidden_size", 512))
    return ModelSpec("owl", model, architecture, found, side, "native", licence, None, own, patch, width)


def _resolve_sam3(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    layout = sam3_layout(model)
    if preset is None:
        found, architecture, licence = folder_weights(model, weights), model, UNKNOWN_LICENCE
    else:
        architecture, licence = preset.architecture, preset.licence
        found = preset_weights(model, preset, f"{architecture}.safetensors", weights)
    return ModelSpec(
        *("sam3", model, architecture, found, layout.side, "native", licence, None),
        *(layout.config_hash, layout.patch, layout.width),
        context=layout.context,
    )


def _resolve_matte(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    layout = vitmatte_layout(model)
    side = int(layout.config["backbone_config"].get("image_size", 512))
    if layout.folder is not None:
        found = folder_weights(str(layout.folder), weights)
        return ModelSpec("matte", model, model, found, side, "native", UNKNOWN_LICENCE, None, layout.config_hash)
    name, named = layout.preset, presets.MATTE[layout.preset]  # a hub id means its preset
    found = preset_weights(name, named, f"{name}.safetensors", weights)
    return ModelSpec("matte", name, name, found, side, "native", named.licence)


def _resolve_tipsv2(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    layout = tipsv2_layout(model)
    if preset is None:
        folder, licence = Path(model.removeprefix(FOLDER)), UNKNOWN_LICENCE
        found = folder_weights(model, weights)
        tokenizer = next((str(folder / name) for name in TOKENIZERS if (folder / name).is_file()), "")
        if not tokenizer:
            raise UsageError(f"{model}: the folder has no {' and no '.join(TOKENIZERS)}. Save the tokenizer there too.")
    else:
        licence, own = preset.licence, f"{model}.{TOKENIZERS[0]}"
        found = preset_weights(model, preset, f"{model}.safetensors", weights, "TIPSv2 weights")
        local = local_file(own) or cached_file(preset.hub, TOKENIZERS[0])
        tokenizer = local or missing(model, own, what=f"tokenizer of {preset.hub}")
    if not found.startswith(RANDOM) and not found.endswith(".safetensors"):
        raise UsageError(f"The weights file {found} of a TIPSv2 must be safetensors, as the hub has it.")
    return ModelSpec(
        *("clip", model, preset.architecture if preset else model, found, layout.side, layout.side * 3 // 2, licence),
        *(None, layout.config_hash, layout.patch, layout.width, layout.logit_scale, layout.context, tokenizer),
    )


#: kind → function that takes the setting `model`, its preset if it names one, and the setting `weights`
RESOLVERS: dict[Kind, Callable[[str, Preset | None, str | None], ModelSpec]] = {
    "clip": _resolve_clip,
    "sam": _resolve_sam,
    "dino": _resolve_dino,
    "owl": _resolve_owl,
    "sam3": _resolve_sam3,
    "matte": _resolve_matte,
}


def _shape(config: dict[str, Any]) -> tuple[int, int]:
    """Return the patch side in pixels and the feature width of a CLIP."""
    patch = config["vision_cfg"].get("patch_size") or 16
    return patch if isinstance(patch, int) else max(patch), config["embed_dim"]


def _clip_config(model: str, architecture: str) -> dict[str, Any]:
    config = _any_clip_config(model, architecture)
    if why := misfit(config):
        raise UsageError(
            f"clip.model {model!r} cannot compute dense maps: {why}. They need open_clip's own ViT with standard "
            "blocks, such as ViT-B-16. docs/methods.md lists the families."
        )
    return config


def _any_clip_config(model: str, architecture: str) -> dict[str, Any]:
    if architecture.startswith((FOLDER, HUB)):
        return _foreign_config(architecture)
    config = open_clip_tables.architecture(architecture)
    if config is None:
        known = [*presets.CLIP, *open_clip_tables.architectures()]
        raise UsageError(
            f"There is no CLIP model {model!r}.{nearest(model, known)} Names: {', '.join(presets.CLIP)}; "
            "or an architecture of open_clip with its own ViT, and clip.weights."
        )
    return dict(config)


def _foreign_config(architecture: str) -> dict[str, Any]:
    folder = _foreign_folder(architecture)
    try:
        config = json.loads((folder / HUB_CONFIG).read_text(encoding="utf-8"))
        return dict(config["model_cfg"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{architecture}: {folder} has no readable {HUB_CONFIG} ({error}).") from None


def _foreign_folder(architecture: str) -> Path:
    if architecture.startswith(FOLDER):
        return Path(architecture.removeprefix(FOLDER))
    config = cached(architecture.removeprefix(HUB), [HUB_CONFIG])
    return config.parent if config else Path(missing(architecture))


def _locate_clip(model: str, architecture: str, weights: str) -> str:
    """Return the weights file of a tag, a path or a prefixed architecture."""
    if ":" in architecture:
        folder = _foreign_folder(architecture)
        files = sorted(f for f in folder.iterdir() if f.suffix in WEIGHT_SUFFIXES) if folder.is_dir() else []
        preferred = [f for f in files if f.name in open_clip_tables.HUB_FILES] or files
        if not preferred and architecture.startswith(FOLDER):
            raise UsageError(f"{architecture}: the folder has no weights file ({', '.join(WEIGHT_SUFFIXES)}).")
        return str(preferred[0]) if preferred else missing(architecture)
    if not weights:
        raise UsageError(
            f"clip.model {model!r} is an architecture; name its weights with clip.weights: a file, or one of the tags "
            f"{', '.join(open_clip_tables.tags(architecture)) or 'of open_clip (it has none)'}."
        )
    found = open_clip_tables.pretrained(architecture, weights)
    if found is None:
        return given_weights(weights, architecture)
    stem = f"{architecture.removesuffix('-quickgelu')}-{weights}"
    local = next((path for suffix in WEIGHT_SUFFIXES if (path := local_file(f"{stem}{suffix}"))), None)
    preset = presets.CLIP.get(model)
    own = preset if preset and preset.tag == weights else None
    fetched = local or cached_file(found.hub, *found.files)
    return fetched or missing(model if own else f"{architecture}:{weights}", f"{stem}.safetensors", own)


def _require_text_files(name: str, config: dict[str, Any]) -> None:
    """Raise MissingModels where the hub's cache lacks files that a text tower of transformers reads."""
    for files in open_clip_tables.text_files(config):
        if cached(files.repository, files.needed) is None:
            missing(name, what=f"tokenizer of {files.repository}")


def resolve_inpainting(model: str) -> pipelines.PipelineSpec:
    """Return the inpainting pipeline that a config names. Raises as `pipelines.resolve_pipeline`."""
    embedded = [folder / "demo" / "inpaint" for folder in checkpoint_folders()]
    return pipelines.resolve_pipeline(model, next((folder for folder in embedded if folder.is_dir()), None))


def known_labels(model: str) -> list[str] | None:
    """Return the words that an embedded CLIP was trained on, or None for a model that accepts any word."""
    preset = presets.CLIP.get(model)
    return list(_demo_config(preset.architecture)["labels"]) if preset and preset.embedded else None


def is_embedded(kind: Kind | Literal["inpaint"], model: str) -> bool:
    """Return whether a name means a model that is part of the package."""
    if kind == "inpaint":
        return model == "demo"
    preset = presets.named(kind).get(model)
    return bool(preset and preset.embedded)


def _demo_config(architecture: str) -> dict[str, Any]:
    return dict(json.loads(embedded_file(architecture).read_text(encoding="utf-8")))
