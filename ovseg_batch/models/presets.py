"""The named models: architecture, publisher of the weights, and licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["clip", "sam", "dino", "owl", "sam3", "matte"]

LOGIT_SCALE = 100.0  # factor of CLIP's similarities; training limits it to this value
FLOAT32 = 4  # bytes per parameter; estimates the size of a file from its number of parameters


@dataclass(frozen=True, slots=True)
class Preset:
    """A named CLIP, TIPSv2, SAM2, DINO, OWLv2, SAM 3 or ViTMatte.

    Attributes:
        architecture: name in open_clip or timm, or config of the sam2 package; `demo/…` for embedded models.
        licence: of the weights.
        tag: open_clip's name of the weights.
        hub: repository on the Hugging Face hub that holds the weights.
        file: name of the weights file. Empty: the names of open_clip are tried.
        embedded: whether the file comes with the package.
        logit_scale: factor of the similarities of image and text.
        size: bytes of the published file, or None where unknown before the download.
        gated: whether the hub requires that its licence is accepted there before a download.
    """

    kind: Kind
    architecture: str
    licence: str
    tag: str = ""
    hub: str = ""
    file: str = ""
    embedded: bool = False
    logit_scale: float = LOGIT_SCALE
    size: int | None = None
    gated: bool = False


def _demo(architecture: str, file: str, logit_scale: float) -> Preset:
    return Preset(
        "clip",
        f"demo/{architecture}.json",
        "Apache-2.0",
        file=f"demo/{file}.safetensors",
        embedded=True,
        logit_scale=logit_scale,
    )


def _tipsv2(size: str, parameters: int) -> Preset:
    hub = f"google/tipsv2-{size}"
    return Preset("clip", f"tipsv2/{size}", "Apache-2.0", hub=hub, file="model.safetensors", size=FLOAT32 * parameters)


CLIP: dict[str, Preset] = {
    "demo": _demo("clip", "clip-region", 17.7),
    "demo-image": _demo("clip", "clip-image", 19.6),
    "demo-token": _demo("clip-token", "clip-token", 20.0),
    "openai-b16": Preset(
        "clip",
        "ViT-B-16-quickgelu",
        "MIT",
        tag="openai",
        hub="timm/vit_base_patch16_clip_224.openai",
        size=598_516_980,
    ),
    "openai-l14": Preset(
        "clip",
        "ViT-L-14-quickgelu",
        "MIT",
        tag="openai",
        hub="timm/vit_large_patch14_clip_224.openai",
        size=FLOAT32 * 427_616_513,
    ),
    "laion-b16": Preset(
        "clip",
        "ViT-B-16",
        "MIT",
        tag="laion2b_s34b_b88k",
        hub="laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        size=FLOAT32 * 149_620_737,
    ),
    "metaclip-b16": Preset(
        "clip",
        "ViT-B-16-quickgelu",
        "CC-BY-NC-4.0",
        tag="metaclip_fullcc",
        hub="timm/vit_base_patch16_clip_224.metaclip_2pt5b",
    ),
    "tipsv2-b14": _tipsv2("b14", 195_948_288),
    "tipsv2-l14": _tipsv2("l14", 487_941_120),
    "tipsv2-so400m14": _tipsv2("so400m14", 861_726_816),
    "tipsv2-g14": _tipsv2("g14", 1_525_085_696),
}


def _tipsv2_config(vision: str, width: int, mlp: int, heads: int, blocks: int, temperature: float) -> dict[str, Any]:
    """Return a config in the layout of the published repositories."""
    return {
        **{"patch_size": 14, "img_size": 448, "num_register_tokens": 1, "vocab_size": 32000, "max_len": 64},
        **{"vision_fn": vision, "embed_dim": width, "ffn_layer": "swiglu" if vision == "vit_giant2" else "mlp"},
        **{"text_hidden_size": width, "text_mlp_dim": mlp, "text_num_heads": heads, "text_num_layers": blocks},
        "temperature": temperature,
    }


#: architecture → its `config.json` on the hub
TIPSV2_CONFIGS: dict[str, dict[str, Any]] = {
    "tipsv2/b14": _tipsv2_config("vit_base", 768, 3072, 12, 12, 0.005065968260169029),
    "tipsv2/l14": _tipsv2_config("vit_large", 1024, 4096, 16, 12, 0.004785141441971064),
    "tipsv2/so400m14": _tipsv2_config("vit_so400m", 1152, 4304, 16, 27, 0.004638021811842918),
    "tipsv2/g14": _tipsv2_config("vit_giant2", 1536, 6144, 24, 12, 0.003622700460255146),
}


def _sam(name: str, letter: str, size: int | None = None, version: str = "2.1") -> Preset:
    return Preset(
        "sam",
        f"configs/sam{version}/sam{version}_hiera_{letter}.yaml",
        "Apache-2.0",
        hub=f"facebook/sam{version}-hiera-{name}",
        file=f"sam{version}_hiera_{name.replace('-', '_')}.pt",
        size=size,
    )


SAM: dict[str, Preset] = {
    "demo": Preset("sam", "demo/sam2.yaml", "Apache-2.0", file="demo/sam2.safetensors", embedded=True),
    "sam2.1-tiny": _sam("tiny", "t", 156_008_466),
    "sam2.1-small": _sam("small", "s", 184_416_285),
    "sam2.1-base-plus": _sam("base-plus", "b+", 323_606_802),
    "sam2.1-large": _sam("large", "l", 898_083_611),
    "sam2-tiny": _sam("tiny", "t", version="2"),
    "sam2-small": _sam("small", "s", version="2"),
    "sam2-base-plus": _sam("base-plus", "b+", version="2"),
    "sam2-large": _sam("large", "l", version="2"),
    "sam1-base": Preset(
        "sam",
        "sam1/vit_b",
        "Apache-2.0",
        hub="facebook/sam-vit-base",
        file="model.safetensors",
        size=FLOAT32 * 93_735_728,
    ),
}


def _dino(architecture: str) -> Preset:
    return Preset("dino", architecture, "Apache-2.0", hub=f"timm/{architecture}", file="model.safetensors")


DINO: dict[str, Preset] = {
    "dino-b8": _dino("vit_base_patch8_224.dino"),
    "dino-b16": _dino("vit_base_patch16_224.dino"),
}


def _owl(size: str, parameters: int) -> Preset:
    hub = f"google/owlv2-{size}-ensemble"
    return Preset("owl", f"owlv2/{size}", "Apache-2.0", hub=hub, file="model.safetensors", size=FLOAT32 * parameters)


OWL: dict[str, Preset] = {
    "owlv2-base": _owl("base-patch16", 154_966_792),
    "owlv2-large": _owl("large-patch14", 437_610_760),
}
#: architecture → its `config.json` on the hub, without the defaults of transformers
OWL_CONFIGS: dict[str, dict[str, Any]] = {
    "owlv2/base-patch16": {"vision_config": {"image_size": 960}},
    "owlv2/large-patch14": {
        "projection_dim": 768,
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "vision_config": {
            **{"hidden_size": 1024, "intermediate_size": 4096, "image_size": 1008, "patch_size": 14},
            **{"num_attention_heads": 16, "num_hidden_layers": 24},
        },
    },
}

SAM3: dict[str, Preset] = {
    "sam3": Preset(
        "sam3",
        "sam3",
        "SAM License (no military use, weapons, espionage)",
        hub="facebook/sam3",
        file="model.safetensors",
        gated=True,
    )
}


def _matte(size: str, data: str, parameters: int) -> Preset:
    hub = f"hustvl/vitmatte-{size}-{data}"
    file = "model.safetensors"
    return Preset("matte", f"vitmatte/{size}", "Apache-2.0", hub=hub, file=file, size=FLOAT32 * parameters)


MATTE: dict[str, Preset] = {
    "vitmatte-small": _matte("small", "composition-1k", 25_816_425),
    "vitmatte-small-d646": _matte("small", "distinctions-646", 25_816_425),
    "vitmatte-base-d646": _matte("base", "distinctions-646", 96_688_233),
}


def _matte_config(width: int, heads: int) -> dict[str, Any]:
    """Return the `config.json` of a ViTMatte on the hub, without the defaults of transformers."""
    every_third = [2, 5, 8, 11]
    backbone = {
        **{"model_type": "vitdet", "num_channels": 4, "image_size": 512, "patch_size": 16, "window_size": 14},
        **{"hidden_size": width, "num_attention_heads": heads, "residual_block_indices": every_third},
        "window_block_indices": [block for block in range(12) if block not in every_third],
        **{"use_absolute_position_embeddings": True, "use_relative_position_embeddings": True},
        "out_features": ["stage12"],
    }
    decoder = {"convstream_hidden_sizes": [48, 96, 192], "fusion_hidden_sizes": [256, 128, 64, 32]}
    return {"backbone_config": backbone, "hidden_size": width, **decoder}


#: architecture → its `config.json` on the hub, without the defaults of transformers
MATTE_CONFIGS = {"vitmatte/small": _matte_config(384, 6), "vitmatte/base": _matte_config(768, 12)}
NAMED: dict[Kind, dict[str, Preset]] = {
    **{"clip": CLIP, "sam": SAM, "dino": DINO, "owl": OWL, "sam3": SAM3},
    "matte": MATTE,
}


def named(kind: Kind) -> dict[str, Preset]:
    """Return the presets of one kind by their names."""
    return NAMED[kind]


def preset_of_hub(kind: Kind, model: str) -> str:
    """Return the name of the preset whose hub id is `model`, otherwise `model`."""
    return next((name for name, preset in NAMED[kind].items() if preset.hub == model), model)
