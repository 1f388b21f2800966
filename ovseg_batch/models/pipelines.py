"""Resolve names to folders of diffusers inpainting pipelines. This module downloads nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.errors import OvsegError, UsageError, nearest
from ovseg_batch.io.hashing import file_hash
from ovseg_batch.models.generators import (
    APACHE,
    FAMILIES,
    OWN_LICENCE,
    REFUSED,
    STABLE_DIFFUSION,
    Family,
    Usual,
    inpainting_class,
)
from ovseg_batch.models.hub_cache import cached
from ovseg_batch.models.missing import Missing, MissingModels

INDEX = "model_index.json"
#: files that loading reads; pickled weights are never loaded
USED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True, slots=True)
class PipelinePreset:
    """A named pipeline.

    Attributes:
        hub: its repository on the Hugging Face hub; empty for the embedded one.
        licence: of the weights.
        usual: default parameters of its authors.
        removing: parameters for `edit.mode: remove`. None: those of `usual`.
        gated: whether the hub sends it only to those who have accepted the licence there.
    """

    hub: str
    licence: str
    usual: Usual = STABLE_DIFFUSION
    removing: Usual | None = None
    gated: bool = False


PIPELINES: dict[str, PipelinePreset] = {
    "demo": PipelinePreset("", "Apache-2.0", Usual(4, 2.0), removing=Usual(1, 1.0)),
    "sd15-inpainting": PipelinePreset("stable-diffusion-v1-5/stable-diffusion-inpainting", "CreativeML OpenRAIL-M"),
    "sd2-inpainting": PipelinePreset("sd2-community/stable-diffusion-2-inpainting", "CreativeML OpenRAIL++-M"),
    "sdxl-inpainting": PipelinePreset("diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "CreativeML OpenRAIL++-M"),
    "flux-fill": PipelinePreset(
        "black-forest-labs/FLUX.1-Fill-dev",
        "FLUX.1 [dev] Non-Commercial",
        FAMILIES["FluxFillPipeline"].usual,
        gated=True,
    ),
    "flux2-klein": PipelinePreset("black-forest-labs/FLUX.2-klein-4B", APACHE, Usual(4, 1.0)),
    "qwen-image": PipelinePreset("Qwen/Qwen-Image", APACHE, FAMILIES["QwenImageInpaintPipeline"].usual),
    "qwen-image-edit": PipelinePreset("Qwen/Qwen-Image-Edit", APACHE, FAMILIES["QwenImageEditInpaintPipeline"].usual),
    "z-image": PipelinePreset("Tongyi-MAI/Z-Image", APACHE, FAMILIES["ZImageInpaintPipeline"].usual),
    "z-image-turbo": PipelinePreset("Tongyi-MAI/Z-Image-Turbo", APACHE, Usual(8, 0.0)),
    "sd3-medium": PipelinePreset(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "Stability AI Community",
        FAMILIES["StableDiffusion3InpaintPipeline"].usual,
        gated=True,
    ),
}


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A pipeline that can be loaded.

    Attributes:
        kind: class name in the folder's index.
        loader: class of diffusers that inpaints with the folder's components.
        family: how that class is called.
        size: side of its squares in pixels.
        usual: default parameters.
        removing: default parameters for `edit.mode: remove`.
    """

    name: str
    folder: Path
    kind: str
    loader: str
    family: Family
    size: int
    licence: str
    usual: Usual
    removing: Usual

    def identity(self) -> dict[str, str]:
        """Return the BLAKE2b hash of every file that is loaded, for fingerprints."""
        files = sorted({path for pattern in USED for path in self.folder.rglob(pattern) if path.is_file()})
        return {"pipeline": self.kind, **{p.relative_to(self.folder).as_posix(): file_hash(p) for p in files}}


def resolve_pipeline(model: str, embedded: Path | None) -> PipelineSpec:
    """Return the inpainting pipeline that a config names.

    Args:
        model: a name of `PIPELINES`, a folder, or a fetched hub id.
        embedded: the folder of `demo`, or None where the installation lacks it.

    Raises:
        UsageError: there is no such pipeline, or it is not for inpainting.
        MissingModels: the pipeline is not on this machine, or is incomplete.
    """
    preset = PIPELINES.get(model) or next((one for one in PIPELINES.values() if one.hub == model), None)
    folder = embedded if model == "demo" else _folder(model, preset)
    if folder is None or not (folder / INDEX).is_file():
        raise OvsegError(f"The inpainting pipeline {model!r} has no {INDEX} in {folder}; install or fetch it again.")
    index = _read(folder / INDEX)
    loader, family = require_inpainting(model, folder)
    if preset is None:
        known = "" if family.licence == OWN_LICENCE else f"{family.licence} as published; "
        preset = PipelinePreset(model, known + OWN_LICENCE, family.defaults(index))
    removing = preset.removing or preset.usual
    return PipelineSpec(
        *(model, folder, str(index["_class_name"]), loader, family),
        *(_size(folder, family), preset.licence, preset.usual, removing),
    )


def _folder(model: str, preset: PipelinePreset | None) -> Path:
    if preset is None and Path(model).is_dir():
        if not (Path(model) / INDEX).is_file():
            raise UsageError(f"inpaint.model: the folder {model} is not a diffusers pipeline: it has no {INDEX}.")
        return Path(model)
    repository = preset.hub if preset else model
    if preset is None and model.count("/") != 1:
        raise UsageError(
            f"inpaint.model: there is no pipeline {model!r}.{nearest(model, PIPELINES)} Names: {', '.join(PIPELINES)}; "
            "or a folder that diffusers saved, or a hub id."
        )
    index = cached(repository, [INDEX])
    if index is None or incomplete(index.parent):
        licence, gated = (preset.licence, preset.gated) if preset else ("", False)
        alternative = "name a folder that has it with inpaint.model"
        raise MissingModels([Missing(model, "inpainting pipeline", None, licence, gated, alternative)])
    return index.parent


def parts(folder: Path) -> set[str]:
    """Return the components of a pipeline that its index names. Each is a folder."""
    return {name for name, value in _read(folder / INDEX).items() if isinstance(value, list) and all(value)}


def incomplete(folder: Path) -> str:
    """Return the first component of a pipeline that lacks files, such as `unet/*.safetensors`, or an empty string.

    An interrupted download leaves such a folder.
    """
    for part in sorted(parts(folder)):
        if not (folder / part).is_dir():
            return f"{part}/"
        shards = set()
        for index in (folder / part).glob("*.safetensors.index*.json"):
            shards |= set(_read(index)["weight_map"].values())
        if any(not (folder / part / shard).exists() for shard in shards):
            return f"{part}/{min(shards)}"
        model = (folder / part / "config.json").exists()
        if model and not any(file.exists() for file in (folder / part).glob("*.safetensors")):
            return f"{part}/*.safetensors"
    return ""


def require_inpainting(model: str, folder: Path) -> tuple[str, Family]:
    """Return the class that inpaints with the components of a folder, and how it is called.

    Only `model_index.json` and the configuration of a UNet are read. A text-to-image UNet is refused, because it would
    run and ignore the image.

    Args:
        model: value of the setting, for the message.

    Raises:
        UsageError: no class can. The message names those that can.
    """
    kind = str(_read(folder / INDEX).get("_class_name", ""))
    unet = folder / "unet" / "config.json"
    channels = _read(unet).get("in_channels") if unet.is_file() else None
    found = inpainting_class(kind)
    if found is None or channels not in (None, 9):
        what = f"it is a {kind or 'pipeline without a class'}"
        if kind in REFUSED:
            what += f", and {REFUSED[kind]}"
        elif found is not None:
            what = f"its UNet takes {channels} channels, not 9"
        raise UsageError(
            f"inpaint.model {model!r} is not for inpainting: {what}. Names: {', '.join(PIPELINES)}. "
            f"Classes of diffusers that inpaint: {', '.join(FAMILIES)}."
        )
    return found


def _size(folder: Path, family: Family) -> int:
    unet, vae = folder / "unet" / "config.json", folder / "vae" / "config.json"
    if not (unet.is_file() and vae.is_file()):
        return family.size
    blocks = len(_read(vae)["block_out_channels"])
    return int(_read(unet)["sample_size"]) << (blocks - 1)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise OvsegError(f"Cannot read {path}: {error}") from None
