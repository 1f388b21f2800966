"""Names to folders of diffusers pipelines that inpaint. Nothing is downloaded here but by `fetch`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub

from ovseg_batch.errors import OvsegError, UsageError, nearest
from ovseg_batch.models.weights import file_hash

INDEX = "model_index.json"
USED = ("*.safetensors", "*.json", "*.txt", "*.model")  # what loading reads; pickled weights are never loaded
FLUX_SIZE = 1024


class Usual(NamedTuple):
    """How a pipeline is used unless the settings say: steps, and how far its words are followed."""

    steps: int
    guidance: float


DIFFUSION = Usual(50, 7.5)  # Stable Diffusion, and what a pipeline without a name is taken to be
FLUX, FLUX_FILL = Usual(50, 3.5), Usual(50, 30.0)  # these are told their guidance, and paint no second picture for it


@dataclass(frozen=True, slots=True)
class PipelinePreset:
    """A pipeline with a name: where it lies on the hub, under which licence, and how its makers use it."""

    hub: str
    licence: str
    usual: Usual = DIFFUSION
    removing: Usual | None = None  # where something is only to go; None: as ever


PIPELINES: dict[str, PipelinePreset] = {
    "demo": PipelinePreset("", "Apache-2.0", Usual(4, 2.0), removing=Usual(1, 1.0)),
    "sd15-inpainting": PipelinePreset("stable-diffusion-v1-5/stable-diffusion-inpainting", "CreativeML OpenRAIL-M"),
    "sd2-inpainting": PipelinePreset("sd2-community/stable-diffusion-2-inpainting", "CreativeML OpenRAIL++-M"),
    "sdxl-inpainting": PipelinePreset("diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "CreativeML OpenRAIL++-M"),
    "flux-fill": PipelinePreset("black-forest-labs/FLUX.1-Fill-dev", "FLUX.1 [dev] Non-Commercial", FLUX_FILL),
}


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A pipeline that can be loaded: its folder, its class in diffusers, the side of the squares it works at, and how
    it is used: in general, and where something is only to go."""

    name: str
    folder: Path
    kind: str
    size: int
    licence: str
    usual: Usual
    removing: Usual

    def identity(self) -> dict[str, str]:
        """What a result depends on, for fingerprints: every file that is loaded, by its BLAKE2b."""
        files = sorted({path for pattern in USED for path in self.folder.rglob(pattern) if path.is_file()})
        return {"pipeline": self.kind, **{p.relative_to(self.folder).as_posix(): file_hash(p) for p in files}}


def resolve_pipeline(model: str, embedded: Path | None) -> PipelineSpec:
    """The inpainting pipeline that a config means.

    Args:
        model: a name of `PIPELINES`, a folder, or a hub id that has been fetched.
        embedded: the folder of `demo`, where the installation has it.

    Raises:
        UsageError: no such pipeline, or one that is not for inpainting.
        OvsegError: it is not on this machine; the message names the command that gets it.
    """
    preset = PIPELINES.get(model)
    folder = embedded if model == "demo" else _folder(model, preset)
    if folder is None or not (folder / INDEX).is_file():
        raise OvsegError(f"The inpainting pipeline {model!r} has no {INDEX} in {folder}; install or fetch it again.")
    kind = str(_read(folder / INDEX).get("_class_name", ""))
    _refuse_others(model, folder, kind)
    if preset is None:
        usual = (FLUX_FILL if "Fill" in kind else FLUX) if kind.startswith("Flux") else DIFFUSION
        preset = PipelinePreset(model, "see the model's own card", usual)
    removing = preset.removing or preset.usual
    return PipelineSpec(model, folder, kind, _size(folder), preset.licence, preset.usual, removing)


def _folder(model: str, preset: PipelinePreset | None) -> Path:
    if preset is None and Path(model).is_dir():
        if not (Path(model) / INDEX).is_file():
            raise UsageError(f"inpaint.model: the folder {model} is no diffusers pipeline; it has no {INDEX}.")
        return Path(model)
    hub = preset.hub if preset else model
    if preset is None and model.count("/") != 1:
        raise UsageError(
            f"inpaint.model: there is no pipeline {model!r}.{nearest(model, PIPELINES)} Names: {', '.join(PIPELINES)}; "
            "or a folder that diffusers saved, or a hub id."
        )
    cached = huggingface_hub.try_to_load_from_cache(hub, INDEX)
    if not isinstance(cached, str):
        raise OvsegError(
            f"The inpainting pipeline {model!r} is not on this machine. Get it with `ovseg-batch models fetch {model}`,"
            " or name a folder with inpaint.model."
        )
    return Path(cached).parent


def _refuse_others(model: str, folder: Path, kind: str) -> None:
    """Only what was made to inpaint: a text-to-image UNet would run, and paint something else."""
    unet = folder / "unet" / "config.json"
    channels = _read(unet).get("in_channels") if unet.is_file() else None
    if ("Inpaint" not in kind and "Fill" not in kind and kind != "FluxPipeline") or channels not in (None, 9):
        wide = channels not in (None, 9)
        what = f"its UNet takes {channels} channels, not 9" if wide else f"it is a {kind or 'pipeline without a class'}"
        raise UsageError(f"inpaint.model {model!r} is not for inpainting: {what}. Names: {', '.join(PIPELINES)}.")


def _size(folder: Path) -> int:
    unet, vae = folder / "unet" / "config.json", folder / "vae" / "config.json"
    if not (unet.is_file() and vae.is_file()):
        return FLUX_SIZE
    blocks = len(_read(vae)["block_out_channels"])
    return int(_read(unet)["sample_size"]) << (blocks - 1)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise OvsegError(f"Cannot read {path}: {error}") from None


def fetch_pipeline(model: str) -> str:
    """Download a pipeline into the hub's own cache; where it lies. Raises OvsegError when that fails."""
    preset = PIPELINES.get(model)
    hub = preset.hub if preset else model
    try:
        return str(huggingface_hub.snapshot_download(hub, allow_patterns=list(USED)))
    except Exception as error:  # the hub's library raises its own, requests' and the system's
        raise OvsegError(f"Cannot fetch {model!r} from {hub}: {error}") from None
