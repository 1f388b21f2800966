"""Names to weights: presets, where their files are and what they hash to.

Nothing is downloaded here but by `fetch`, which a person asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import open_clip
import yaml

from ovseg_batch.errors import OvsegError, UsageError, nearest
from ovseg_batch.models import pipelines
from ovseg_batch.models import weights as weights_files
from ovseg_batch.models.weights import file_hash

Kind = Literal["clip", "sam"]

RANDOM = "random:"  # weights "random:SEED": full-size models for speed and loading tests
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
CLIP_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.safetensors")


LOGIT_SCALE = 100.0  # multiplies the similarities that CLIP is trained on; training clips it at this value


@dataclass(frozen=True, slots=True)
class Preset:
    """A model with a name. `tag` is open_clip's; `file` is what the weights are called here or on the hub."""

    kind: Kind
    architecture: str
    licence: str
    tag: str = ""
    hub: str = ""
    file: str = ""
    embedded: bool = False
    logit_scale: float = LOGIT_SCALE


_SAM = "configs/sam2.1/sam2.1_hiera_{}.yaml"
PRESETS: dict[str, Preset] = {
    "demo": Preset(
        "clip", "demo/clip.json", "Apache-2.0", file="demo/clip-region.safetensors", embedded=True, logit_scale=17.7
    ),
    "demo-image": Preset(
        "clip", "demo/clip.json", "Apache-2.0", file="demo/clip-image.safetensors", embedded=True, logit_scale=19.6
    ),
    "demo-token": Preset(
        "clip",
        "demo/clip-token.json",
        "Apache-2.0",
        file="demo/clip-token.safetensors",
        embedded=True,
        logit_scale=20.0,
    ),
    "openai-b16": Preset("clip", "ViT-B-16-quickgelu", "MIT", tag="openai"),
    "openai-l14": Preset("clip", "ViT-L-14-quickgelu", "MIT", tag="openai"),
    "laion-b16": Preset("clip", "ViT-B-16", "MIT", tag="laion2b_s34b_b88k"),
    "metaclip-b16": Preset("clip", "ViT-B-16-quickgelu", "CC-BY-NC-4.0", tag="metaclip_fullcc"),
}
SAM_PRESETS: dict[str, Preset] = {
    "demo": Preset("sam", "demo/sam2.yaml", "Apache-2.0", file="demo/sam2.safetensors", embedded=True),
    **{
        f"sam2.1-{name}": Preset(
            "sam",
            _SAM.format(letter),
            "Apache-2.0",
            hub=f"facebook/sam2.1-hiera-{name}",
            file=f"sam2.1_hiera_{name.replace('-', '_')}.pt",
        )
        for name, letter in (("tiny", "t"), ("small", "s"), ("base-plus", "b+"), ("large", "l"))
    },
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that can be loaded: an architecture and the file (or `random:SEED`) of its weights."""

    kind: Kind
    name: str
    architecture: str
    weights: str
    window: int  # pixels, the side the model was trained at
    short_side: int | Literal["native"]  # to which an image is resized unless the config says otherwise
    licence: str
    quick_gelu: bool | None = None
    config_hash: str = ""  # of the architecture's own config file, where it comes with one
    patch: int = 16  # pixels a side of what becomes one feature
    width: int = 256  # of a feature: numbers
    logit_scale: float = LOGIT_SCALE

    @property
    def embedded(self) -> bool:
        """Whether it is one of the small models that come with the package."""
        return self.architecture.startswith("demo/")

    def identity(self) -> dict[str, str]:
        """What a result depends on, for fingerprints."""
        return {"model": self.architecture, "weights": self.weights_hash(), "config": self.config_hash}

    def weights_hash(self) -> str:
        """BLAKE2b of the weights file, or the seed's name."""
        if self.weights.startswith(RANDOM):
            return self.weights
        return file_hash(self.weights)


def presets(kind: Kind) -> dict[str, Preset]:
    return PRESETS if kind == "clip" else SAM_PRESETS


def checkpoint_folders() -> list[Path]:
    """Where weights are looked for: $OVSEG_CHECKPOINTS, then the package's own (wheel or source checkout)."""
    package = Path(__file__).resolve().parent.parent
    named = os.environ.get("OVSEG_CHECKPOINTS")
    return ([Path(named)] if named else []) + [package / "checkpoints", package.parent / "checkpoints"]


def embedded_file(name: str) -> Path:
    """A file under checkpoints/. Raises OvsegError when the installation lacks it."""
    for folder in checkpoint_folders():
        if (folder / name).is_file():
            return folder / name
    raise OvsegError(
        f"The embedded model's file {name} is not in {', '.join(map(str, checkpoint_folders()))}. "
        "Install ovseg_batch again, or train it with scripts/train_demo.py."
    )


def resolve(kind: Kind, model: str, weights: str | None = None) -> ModelSpec:
    """The model that a config means.

    Args:
        kind: `clip` or `sam`.
        model: a preset; or an open_clip architecture, `local-dir:` or `hf-hub:`; or a config of the sam2 package.
        weights: a local file, an open_clip tag, or `random:SEED`; None takes the preset's own.

    Raises:
        UsageError: an unknown name, or an architecture without weights.
        OvsegError: weights that are not on this machine; the message names the command that gets them.
    """
    preset = presets(kind).get(model)
    architecture = preset.architecture if preset else model
    if kind == "sam":
        return _resolve_sam(model, architecture, preset, weights)
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
    located = _locate_clip(model, architecture, tag)
    quick = bool(config.get("quick_gelu", False))
    _refuse_wrong_gelu(architecture, quick, tag, located)
    licence = preset.licence if preset else "see the weights' own card"
    own = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
    return ModelSpec("clip", model, architecture, located, side, side * 3 // 2, licence, quick, own, *_shape(config))


def _resolve_sam(model: str, architecture: str, preset: Preset | None, weights: str | None) -> ModelSpec:
    licence = preset.licence if preset else "see the weights' own card"
    if preset is None and not re.fullmatch(r"configs/sam2(\.1)?/[\w.+]+\.yaml", model):
        raise UsageError(
            f"There is no SAM2 model {model!r}.{nearest(model, SAM_PRESETS)} Names: {', '.join(SAM_PRESETS)}; "
            "or a config of the sam2 package such as configs/sam2.1/sam2.1_hiera_l.yaml."
        )
    if weights is not None:
        found = _given(weights)
    elif preset is None:
        raise UsageError(f"sam.model {model!r} is an architecture; name its file with sam.weights.")
    elif preset.embedded:
        found = str(embedded_file(preset.file))
    else:
        found = _local(preset.file) or _hub_cached(preset.hub, [preset.file]) or _not_here(model, preset.file)
    if not (preset and preset.embedded):
        return ModelSpec("sam", model, architecture, found, 1024, "native", licence)
    own = embedded_file(architecture)
    config = yaml.safe_load(own.read_text(encoding="utf-8"))["model"]
    side, width = config["image_size"], config["image_encoder"]["neck"]["d_model"]
    return ModelSpec("sam", model, architecture, found, side, "native", licence, None, file_hash(own), width=width)


def _shape(config: dict[str, Any]) -> tuple[int, int]:
    """Of a CLIP by its config: pixels a patch, numbers a feature."""
    patch = config["vision_cfg"].get("patch_size") or 16
    return patch if isinstance(patch, int) else max(patch), config["embed_dim"]


def _clip_config(model: str, architecture: str) -> dict[str, Any]:
    for schema in ("local-dir:", "hf-hub:"):
        if architecture.startswith(schema):
            return _foreign_config(architecture)
    config = open_clip.get_model_config(architecture)
    if config is None:
        known = [*PRESETS, *open_clip.list_models()]
        raise UsageError(
            f"There is no CLIP model {model!r}.{nearest(model, known)} Names: {', '.join(PRESETS)}; "
            "or any ViT architecture of open_clip with clip.weights."
        )
    return dict(config)


def _foreign_config(architecture: str) -> dict[str, Any]:
    folder = _foreign_folder(architecture)
    try:
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        return dict(config["model_cfg"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{architecture}: {folder} has no readable open_clip_config.json ({error}).") from None


def _foreign_folder(architecture: str) -> Path:
    schema, _, identifier = architecture.partition(":")
    if schema == "local-dir":
        return Path(identifier)
    cached = huggingface_hub.try_to_load_from_cache(identifier, "open_clip_config.json")
    return Path(cached).parent if isinstance(cached, str) else Path(_not_here(architecture, identifier))


def _locate_clip(model: str, architecture: str, weights: str) -> str:
    """The file behind a tag, path or schema."""
    if ":" in architecture:
        folder = _foreign_folder(architecture)
        files = sorted(f for f in folder.iterdir() if f.suffix in WEIGHT_SUFFIXES) if folder.is_dir() else []
        preferred = [f for f in files if f.name in CLIP_HUB_FILES] or files
        return str(preferred[0]) if preferred else _not_here(model, f"{folder}/{CLIP_HUB_FILES[0]}")
    if not weights:
        raise UsageError(
            f"clip.model {model!r} is an architecture; name its weights with clip.weights: a file, or one of the tags "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(architecture)) or 'of open_clip (it has none)'}."
        )
    tag = open_clip.pretrained.get_pretrained_cfg(architecture, weights)
    if not tag:
        return _given(weights, open_clip.list_pretrained_tags_by_model(architecture))
    stem = f"{architecture.removesuffix('-quickgelu')}-{weights}"
    local = next((found for suffix in WEIGHT_SUFFIXES if (found := _local(f"{stem}{suffix}"))), None)
    hub = tag.get("hf_hub", "").strip("/")
    fetch = model if model in PRESETS else f"{architecture}:{weights}"
    return local or _hub_cached(hub, CLIP_HUB_FILES) or _not_here(fetch, f"{stem}.safetensors")


def _given(weights: str, tags: Iterable[str] = ()) -> str:
    """A file that the person named, or a seed."""
    if weights.startswith(RANDOM):
        if not weights.removeprefix(RANDOM).isdigit():
            raise UsageError(f"weights {weights!r}: write random:SEED with a whole number.")
        return weights
    if not Path(weights).is_file():
        raise UsageError(f"There is no weights file {weights}.{nearest(weights, tags)}")
    if Path(weights).suffix not in WEIGHT_SUFFIXES:
        raise UsageError(f"The weights file {weights} is none of {', '.join(WEIGHT_SUFFIXES)}.")
    return weights


def _local(name: str) -> str | None:
    return next((str(folder / name) for folder in checkpoint_folders() if (folder / name).is_file()), None)


def _hub_cached(repository: str, names: Iterable[str]) -> str | None:
    """A file that huggingface_hub has downloaded before; asks no network."""
    for name in names if repository else ():
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return cached
    return None


def _not_here(model: str, file: str) -> str:
    raise OvsegError(
        f"The weights of {model!r} are not on this machine. Get them with `ovseg-batch models fetch {model}`, "
        f"or put them at {checkpoint_folders()[0] / file}."
    )


def _refuse_wrong_gelu(architecture: str, quick: bool, tag: str, file: str) -> None:
    """OpenAI's, MetaCLIP's and DFN's weights need QuickGELU; with the other one every number is silently wrong."""
    known = open_clip.pretrained.get_pretrained_cfg(architecture, tag) if ":" not in architecture else {}
    needs: bool | None = bool(known["quick_gelu"]) if known and "quick_gelu" in known else None
    if needs is None and not known and not file.startswith(RANDOM):
        beside = Path(file).with_name("open_clip_config.json")
        if beside.is_file() and ":" not in architecture:
            needs = bool(json.loads(beside.read_text(encoding="utf-8")).get("model_cfg", {}).get("quick_gelu", False))
        elif re.search(r"openai|metaclip|dfn", Path(file).name.lower()) or _is_openai_layout(file):
            needs = True
    if needs is not None and needs != quick:
        twin = f"{architecture}-quickgelu" if needs else architecture.removesuffix("-quickgelu")
        raise UsageError(
            f"The weights {tag or file} were trained with {'QuickGELU' if needs else 'GELU'}, and {architecture} has "
            f"{'QuickGELU' if quick else 'GELU'}: every number would be wrong. Set clip.model: {twin}."
        )


def _is_openai_layout(file: str) -> bool:
    """Whether the file has the three extra entries that only OpenAI's own state dicts carry."""
    try:
        if file.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(file, "pt") as opened:
                return "input_resolution" in opened.keys()  # noqa: SIM118 - not a dict
        return "input_resolution" in weights_files.read_state_dict(file)
    except Exception:  # a damaged file raises whatever its parser raises; loading it reports it
        return False


def fetch(model: str, say: Callable[[str], None]) -> str:
    """Download a named model's weights into the hub's own cache; where they lie.

    Raises:
        UsageError: no such name. OvsegError: the network or the hub refused.
    """
    if model in pipelines.PIPELINES and model != "demo":
        say(f"fetching {pipelines.PIPELINES[model].hub}")
        return pipelines.fetch_pipeline(model)
    hub, names = _hub_source(model)
    problem: Exception | None = None
    for name in names:
        say(f"fetching {hub}/{name}")
        try:
            return str(huggingface_hub.hf_hub_download(hub, name))
        except Exception as error:  # the hub's library raises its own, requests' and the system's
            problem = error
    raise OvsegError(f"Cannot fetch {model!r} from {hub}: {problem}") from None


def _hub_source(model: str) -> tuple[str, tuple[str, ...]]:
    if model in SAM_PRESETS and SAM_PRESETS[model].hub:
        return SAM_PRESETS[model].hub, (SAM_PRESETS[model].file,)
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:"), CLIP_HUB_FILES
    preset = PRESETS.get(model)
    architecture, tag = (preset.architecture, preset.tag) if preset else (*model.partition(":")[::2],)
    hub = open_clip.pretrained.get_pretrained_cfg(architecture, tag).get("hf_hub", "").strip("/") if tag else ""
    if not hub:
        known = [n for group in (PRESETS, SAM_PRESETS) for n, p in group.items() if not p.embedded]
        raise UsageError(
            f"There is nothing to fetch for {model!r}.{nearest(model, known)} "
            f"Names: {', '.join(known)}; or an open_clip ARCHITECTURE:TAG."
        )
    return hub, CLIP_HUB_FILES


def list_models() -> list[dict[str, str]]:
    """Every preset with whether its weights are `embedded`, `here` or `missing`."""
    lines = []
    for group in (PRESETS, SAM_PRESETS):
        for name, preset in group.items():
            try:
                resolve(preset.kind, name)
                state = "embedded" if preset.embedded else "here"
            except OvsegError:
                state = "missing"
            architecture = f"{preset.architecture} {preset.tag}".strip()
            line = {"kind": preset.kind, "name": name, "state": state, "architecture": architecture}
            lines.append({**line, "licence": preset.licence})
    for name, pipeline in pipelines.PIPELINES.items():
        try:
            resolve_inpainting(name)
            state = "here" if pipeline.hub else "embedded"
        except OvsegError:
            state = "missing"
        line = {"kind": "inpaint", "name": name, "state": state, "architecture": pipeline.hub or "demo/inpaint"}
        lines.append({**line, "licence": pipeline.licence})
    return lines


def resolve_inpainting(model: str) -> pipelines.PipelineSpec:
    """The inpainting pipeline that a config means. Raises as `pipelines.resolve_pipeline`."""
    embedded = [folder / "demo" / "inpaint" for folder in checkpoint_folders()]
    return pipelines.resolve_pipeline(model, next((folder for folder in embedded if folder.is_dir()), None))


def known_labels(model: str) -> list[str] | None:
    """The words an embedded CLIP was taught; None for a model that takes any."""
    preset = PRESETS.get(model)
    return list(_demo_config(preset.architecture)["labels"]) if preset and preset.embedded else None


def is_embedded(kind: Kind, model: str) -> bool:
    preset = presets(kind).get(model)
    return bool(preset and preset.embedded)


def _demo_config(architecture: str) -> dict[str, Any]:
    return dict(json.loads(embedded_file(architecture).read_text(encoding="utf-8")))
