"""Resolve the names of models to their files and hashes. This module downloads nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml

from ovseg_batch.errors import OvsegError, UsageError, nearest
from ovseg_batch.io.hashing import file_hash
from ovseg_batch.models import open_clip_tables, pipelines, presets
from ovseg_batch.models.dense_towers import misfit
from ovseg_batch.models.gelu import gelu_of_file, refuse_wrong_gelu
from ovseg_batch.models.hub_cache import cached
from ovseg_batch.models.layouts import HUB_CONFIG
from ovseg_batch.models.missing import Missing, MissingModels
from ovseg_batch.models.presets import Kind, Preset
from ovseg_batch.models.sam3_layout import sam3_layout
from ovseg_batch.models.spec import FOLDER, RANDOM, SAM1, ModelSpec
from ovseg_batch.models.tipsv2_layout import TOKENIZERS, is_tipsv2, tipsv2_layout
from ovseg_batch.models.vitmatte_layout import vitmatte_layout

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
HUB = "hf-hub:"  # prefix of an architecture: a CLIP of the hub
TIMM_CONFIG = "config.json"  # the architecture of a model in a folder that timm wrote
DINO_WIDTH = 768  # length of a feature of the named DINO models
SAM1_FILES = {"sam1/vit_b": "sam_vit_b_01ec64.pth"}  # architecture → name under which Meta publishes its weights
OWL_CONFIG = "config.json"  # the architecture of an OWLv2 in a folder that transformers wrote
SAM1_CONFIG = "config.json"  # the architecture of a SAM in a folder that transformers wrote
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


def checkpoint_folders() -> list[Path]:
    """Return the folders that are searched for weights: $OVSEG_CHECKPOINTS, the package's, and its checkout's."""
    package = Path(__file__).resolve().parent.parent
    named = os.environ.get("OVSEG_CHECKPOINTS")
    return ([Path(named)] if named else []) + [package / "checkpoints", package.parent / "checkpoints"]


def embedded_file(name: str) -> Path:
    """Return a file under checkpoints/. Raises OvsegError where the installation lacks it."""
    for folder in checkpoint_folders():
        if (folder / name).is_file():
            return folder / name
    raise OvsegError(
        f"The embedded model's file {name} is not in {', '.join(map(str, checkpoint_folders()))}. "
        "Install ovseg_batch again, or train it with scripts/training/train_demo.py."
    )


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
    preset = presets.named(kind).get(model)
    architecture = preset.architecture if preset else model
    if kind == "sam":
        return _resolve_sam(model, architecture, preset, weights)
    if kind == "dino":
        return _resolve_dino(model, preset, weights)
    if kind == "owl":
        return _resolve_owl(model, preset, weights)
    if kind == "sam3":
        return _resolve_sam3(model, preset, weights)
    if kind == "matte":
        return _resolve_matte(model, weights)
    if is_tipsv2(model):
        return _resolve_tipsv2(model, preset, weights)
    if preset and preset.embedded:
        found = weights or str(embedded_file(preset.file))
        config = _demo_config(architecture)["model_cfg"]
        side, shape = config["vision_cfg"]["image_size"], _shape(config)
        own = file_hash(embedded_file(architecture)) + file_hash(embedded_file("demo/bpe.txt.gz"))
        return ModelSpec(
            *("clip", model, architecture, _given(found), side, "native", preset.licence, False, own, *shape),
            logit_scale=preset.logit_scale,
        )
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


def _resolve_sam(model: str, architecture: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    if architecture.startswith((SAM1, FOLDER)):
        return _resolve_sam1(model, architecture, preset, weights)
    licence = preset.licence if preset else UNKNOWN_LICENCE
    if preset is None and not re.fullmatch(r"configs/sam2(\.1)?/[\w.+]+\.yaml", model):
        raise UsageError(
            f"There is no SAM2 model {model!r}.{nearest(model, presets.SAM)} Names: {', '.join(presets.SAM)}; "
            "or a config of the sam2 package such as configs/sam2.1/sam2.1_hiera_l.yaml."
        )
    if weights is not None:
        found = _given(weights)
    elif preset is None:
        raise UsageError(f"sam.model {model!r} is an architecture; name its file with sam.weights.")
    elif preset.embedded:
        found = str(embedded_file(preset.file))
    else:
        found = _local(preset.file) or _cached(preset.hub, preset.file) or _missing(model, preset.file, preset)
    if not (preset and preset.embedded):
        return ModelSpec("sam", model, architecture, found, 1024, "native", licence)
    own = embedded_file(architecture)
    config = yaml.safe_load(own.read_text(encoding="utf-8"))["model"]
    side, width = config["image_size"], config["image_encoder"]["neck"]["d_model"]
    return ModelSpec("sam", model, architecture, found, side, "native", licence, None, file_hash(own), width=width)


def _resolve_dino(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    if preset is not None:
        [(patch, window)] = re.findall(r"patch(\d+)_(\d+)", preset.architecture)
        file = f"{preset.architecture}.safetensors"
        found = _given(weights) if weights else _local(file) or _cached(preset.hub, preset.file)
        found, own, width = found or _missing(model, file, preset), "", DINO_WIDTH
    elif model.startswith(FOLDER):
        folder = Path(model.removeprefix(FOLDER))
        try:
            text = (folder / TIMM_CONFIG).read_text(encoding="utf-8")
            args = json.loads(text)["model_args"]
            window, patch, width = (int(args[name]) for name in ("img_size", "patch_size", "embed_dim"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            needed = f"{TIMM_CONFIG} with img_size, patch_size and embed_dim in its model_args"
            raise UsageError(f"{model}: {folder} has no readable {needed} ({error}).") from None
        found = _given(weights or str(folder / "model.safetensors"))
        own = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    else:
        raise UsageError(
            f"There is no DINO model {model!r}.{nearest(model, presets.DINO)} Names: {', '.join(presets.DINO)}; "
            f"or {FOLDER}FOLDER for a ViT that timm has saved."
        )
    architecture, licence = (preset.architecture, preset.licence) if preset else (model, UNKNOWN_LICENCE)
    return ModelSpec(
        *("dino", model, architecture, found, int(window), "native", licence, None, own, int(patch), width)
    )


def _resolve_sam1(model: str, architecture: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    if preset is not None:
        file = SAM1_FILES[architecture]
        found = _given(weights) if weights else _local(file) or _cached(preset.hub, preset.file)
        found = found or _missing(model, file, preset, "SAM weights")
        return ModelSpec("sam", model, architecture, found, 1024, "native", preset.licence)
    folder = Path(architecture.removeprefix(FOLDER))
    try:
        text = (folder / SAM1_CONFIG).read_text(encoding="utf-8")
        vision = json.loads(text)["vision_config"]
        side, width = int(vision["image_size"]), int(vision["output_channels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{model}: {folder} has no readable {SAM1_CONFIG} of a SAM ({error}).") from None
    found = _given(weights or str(folder / "model.safetensors"))
    own = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return ModelSpec("sam", model, architecture, found, side, "native", UNKNOWN_LICENCE, None, own, width=width)


def _resolve_owl(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    if preset is not None:
        config, own, architecture = presets.OWL_CONFIGS[preset.architecture], "", preset.architecture
        file = f"{preset.hub.partition('/')[2]}.safetensors"
        found = _given(weights) if weights else _local(file) or _cached(preset.hub, preset.file)
        found = found or _missing(model, file, preset)
    elif model.startswith(FOLDER):
        folder, architecture = Path(model.removeprefix(FOLDER)), model
        try:
            text = (folder / OWL_CONFIG).read_text(encoding="utf-8")
            config = dict(json.loads(text))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{model}: {folder} has no readable {OWL_CONFIG} of an OWLv2 ({error}).") from None
        found = _given(weights or str(folder / "model.safetensors"))
        own = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
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
        found: str | None = _given(weights or str(Path(model.removeprefix(FOLDER)) / "model.safetensors"))
    else:
        file = f"{preset.architecture}.safetensors"
        found = _given(weights) if weights else _local(file) or _cached(preset.hub, preset.file)
        found = found or _missing(model, file, preset)
    architecture, licence = (preset.architecture, preset.licence) if preset else (model, UNKNOWN_LICENCE)
    return ModelSpec(
        *("sam3", model, architecture, str(found), layout.side, "native", licence, None),
        *(layout.config_hash, layout.patch, layout.width),
        context=layout.context,
    )


def _resolve_matte(model: str, weights: str | None) -> ModelSpec:
    layout = vitmatte_layout(model)
    side = int(layout.config["backbone_config"].get("image_size", 512))
    if layout.folder is not None:
        found = _given(weights or str(layout.folder / "model.safetensors"))
        return ModelSpec("matte", model, model, found, side, "native", UNKNOWN_LICENCE, None, layout.config_hash)
    preset = presets.MATTE[layout.preset]
    file = f"{layout.preset}.safetensors"
    local = _given(weights) if weights else _local(file) or _cached(preset.hub, preset.file)
    local = local or _missing(layout.preset, file, preset)
    return ModelSpec("matte", layout.preset, layout.preset, local, side, "native", preset.licence)


def _resolve_tipsv2(model: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    layout = tipsv2_layout(model)
    if preset is None:
        folder, licence = Path(model.removeprefix(FOLDER)), UNKNOWN_LICENCE
        found = _given(weights or str(folder / "model.safetensors"))
        tokenizer = next((str(folder / name) for name in TOKENIZERS if (folder / name).is_file()), "")
        if not tokenizer:
            raise UsageError(f"{model}: the folder has no {' and no '.join(TOKENIZERS)}. Save the tokenizer there too.")
    else:
        licence, (file, own) = preset.licence, (f"{model}.safetensors", f"{model}.{TOKENIZERS[0]}")
        local = _given(weights) if weights else _local(file) or _cached(preset.hub, preset.file)
        found = local or _missing(model, file, preset, "TIPSv2 weights")
        local = _local(own) or _cached(preset.hub, TOKENIZERS[0])
        tokenizer = local or _missing(model, own, what=f"tokenizer of {preset.hub}")
    if not found.startswith(RANDOM) and not found.endswith(".safetensors"):
        raise UsageError(f"The weights file {found} of a TIPSv2 must be safetensors, as the hub has it.")
    return ModelSpec(
        *("clip", model, preset.architecture if preset else model, found, layout.side, layout.side * 3 // 2, licence),
        *(None, layout.config_hash, layout.patch, layout.width, layout.logit_scale, layout.context, tokenizer),
    )


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
    return config.parent if config else Path(_missing(architecture))


def _locate_clip(model: str, architecture: str, weights: str) -> str:
    """Return the weights file of a tag, a path or a prefixed architecture."""
    if ":" in architecture:
        folder = _foreign_folder(architecture)
        files = sorted(f for f in folder.iterdir() if f.suffix in WEIGHT_SUFFIXES) if folder.is_dir() else []
        preferred = [f for f in files if f.name in open_clip_tables.HUB_FILES] or files
        if not preferred and architecture.startswith(FOLDER):
            raise UsageError(f"{architecture}: the folder has no weights file ({', '.join(WEIGHT_SUFFIXES)}).")
        return str(preferred[0]) if preferred else _missing(architecture)
    if not weights:
        raise UsageError(
            f"clip.model {model!r} is an architecture; name its weights with clip.weights: a file, or one of the tags "
            f"{', '.join(open_clip_tables.tags(architecture)) or 'of open_clip (it has none)'}."
        )
    found = open_clip_tables.pretrained(architecture, weights)
    if found is None:
        return _given(weights, architecture)
    stem = f"{architecture.removesuffix('-quickgelu')}-{weights}"
    local = next((path for suffix in WEIGHT_SUFFIXES if (path := _local(f"{stem}{suffix}"))), None)
    preset = presets.CLIP.get(model)
    own = preset if preset and preset.tag == weights else None
    fetched = local or _cached(found.hub, *found.files)
    return fetched or _missing(model if own else f"{architecture}:{weights}", f"{stem}.safetensors", own)


def _given(weights: str, architecture: str = "") -> str:
    """Return the weights file of a setting, or `random:SEED`. Raises UsageError, which names the nearest tag."""
    if weights.startswith(RANDOM):
        if not weights.removeprefix(RANDOM).isdecimal():
            raise UsageError(f"weights {weights!r}: write random:SEED with a whole number.")
        return weights
    if not Path(weights).is_file():
        tags = open_clip_tables.tags(architecture) if architecture else []
        raise UsageError(f"There is no weights file {weights}.{nearest(weights, tags)}")
    if Path(weights).suffix not in WEIGHT_SUFFIXES:
        raise UsageError(f"The weights file {weights} does not end with one of {', '.join(WEIGHT_SUFFIXES)}.")
    return weights


def _local(name: str) -> str | None:
    return next((str(folder / name) for folder in checkpoint_folders() if (folder / name).is_file()), None)


def _cached(repository: str, *names: str) -> str | None:
    found = cached(repository, names)
    return str(found) if found else None


def _missing(name: str, file: str = "", preset: Preset | None = None, what: str = "") -> str:
    """Raise MissingModels for one model.

    Args:
        name: argument of `models fetch`.
        file: name of the weights file in a checkpoint folder.
    """
    kinds = {
        "clip": "CLIP weights",
        "sam": "SAM2 weights",
        "dino": "DINO weights",
        "owl": "OWLv2 weights",
        "sam3": "SAM 3 weights",
        "matte": "ViTMatte weights",
    }
    kind = kinds[preset.kind if preset else "clip"]
    licence, weight = (preset.licence, preset.size) if preset else ("", None)
    gated = preset is not None and preset.gated
    alternative = f"set OVSEG_CHECKPOINTS to a folder that has {file}" if file else ""
    raise MissingModels([Missing(name, what or kind, weight, licence, gated, alternative)])


def _require_text_files(name: str, config: dict[str, Any]) -> None:
    """Raise MissingModels where the hub's cache lacks files that a text tower of transformers reads."""
    for files in open_clip_tables.text_files(config):
        if cached(files.repository, files.needed) is None:
            _missing(name, what=f"tokenizer of {files.repository}")


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
