"""The classes of diffusers that inpaint: how each is called, and the defaults of its authors.

A folder's `model_index.json` names a class. `inpainting_class` maps it to the class that inpaints with the folder's
components, which is often another one: a folder of `FluxPipeline` is loaded as `FluxInpaintPipeline`, as by
`AutoPipelineForInpainting`. This module imports no model library.

Sources of steps and guidance: the model cards of the publishers, the examples in the docstrings of diffusers 0.42, and
the defaults of its signatures where neither states them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

GuidanceKey = Literal["guidance_scale", "true_cfg_scale"]
OWN_LICENCE = "see the model's own card"
MEGAPIXEL_SIDE = 1024  # side in pixels of squares of one megapixel


class Usual(NamedTuple):
    """The defaults of a pipeline: denoising steps, and guidance scale."""

    steps: int
    guidance: float


@dataclass(frozen=True, slots=True)
class Family:
    """How one class of diffusers inpaints.

    Attributes:
        usual: default parameters.
        others: further classes whose folders it loads.
        guidance_key: parameter of the call that scales classifier-free guidance, or feeds a distilled model.
        negative_prompt: whether the call uses a negative prompt.
        multiple: the side of a square must be a multiple of this, in pixels.
        size: default side in pixels where the configuration of its parts states none.
        only_size: whether the class computes squares of `size` alone.
        largest: longest side in pixels that the class computes. None: any.
        pictures: the call takes Pillow images, not tensors.
        batches: whether it computes several squares in one call.
        distilled: default parameters where `model_index.json` says that the model is distilled.
        licence: of the published weights.
    """

    usual: Usual
    others: tuple[str, ...] = ()
    guidance_key: GuidanceKey = "guidance_scale"
    negative_prompt: bool = True
    multiple: int = 16
    size: int = MEGAPIXEL_SIDE
    only_size: bool = False
    largest: int | None = None
    pictures: bool = False
    batches: bool = True
    distilled: Usual | None = None
    licence: str = OWN_LICENCE

    def defaults(self, index: Mapping[str, object]) -> Usual:
        """Return the default parameters of a folder with this `model_index.json`."""
        return self.distilled if self.distilled and index.get("is_distilled") else self.usual

    def size_problem(self, side: int) -> str:
        """Return why a square of this side in pixels cannot be computed. Empty: it can."""
        if self.only_size and side != self.size:
            return f"it computes squares of {self.size} pixels alone"
        if self.largest is not None and side > self.largest:
            return f"it computes squares of at most {self.largest} pixels"
        return "" if side % self.multiple == 0 else f"its squares have multiples of {self.multiple} pixels"


STABLE_DIFFUSION = Usual(50, 7.5)
OPENRAIL = "CreativeML OpenRAIL-M"
APACHE = "Apache-2.0"
FLUX_DEV = "FLUX.1 [dev] Non-Commercial"

#: class that inpaints → how
FAMILIES: dict[str, Family] = {
    "StableDiffusionInpaintPipeline": Family(
        STABLE_DIFFUSION, ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"), multiple=8, licence=OPENRAIL
    ),
    "StableDiffusionPAGInpaintPipeline": Family(
        STABLE_DIFFUSION,
        ("StableDiffusionPAGPipeline", "StableDiffusionPAGImg2ImgPipeline"),
        multiple=8,
        licence=OPENRAIL,
    ),
    "StableDiffusionXLInpaintPipeline": Family(
        STABLE_DIFFUSION,
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        multiple=8,
        licence="CreativeML OpenRAIL++-M",
    ),
    "StableDiffusionXLPAGInpaintPipeline": Family(
        STABLE_DIFFUSION,
        ("StableDiffusionXLPAGPipeline", "StableDiffusionXLPAGImg2ImgPipeline"),
        multiple=8,
        licence="CreativeML OpenRAIL++-M",
    ),
    "StableDiffusion3InpaintPipeline": Family(
        Usual(28, 7.0),
        ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
        licence="Stability AI Community",
    ),
    "FluxInpaintPipeline": Family(
        Usual(50, 3.5),
        ("FluxPipeline", "FluxImg2ImgPipeline"),
        negative_prompt=False,  # guidance-distilled: no unconditional pass
        licence=f"{FLUX_DEV}; schnell: {APACHE}",
    ),
    "FluxFillPipeline": Family(Usual(50, 30.0), negative_prompt=False, licence=FLUX_DEV),
    "FluxKontextInpaintPipeline": Family(
        Usual(28, 3.5), ("FluxKontextPipeline",), negative_prompt=False, only_size=True, licence=FLUX_DEV
    ),
    "Flux2KleinInpaintPipeline": Family(
        Usual(50, 4.0),
        ("Flux2KleinPipeline",),
        negative_prompt=False,
        largest=MEGAPIXEL_SIDE,
        distilled=Usual(4, 1.0),
        licence=f"4B: {APACHE}; 9B: FLUX Non-Commercial",
    ),
    "ChromaInpaintPipeline": Family(Usual(40, 3.0), ("ChromaPipeline", "ChromaImg2ImgPipeline"), licence=APACHE),
    "QwenImageInpaintPipeline": Family(
        Usual(50, 4.0),
        ("QwenImagePipeline", "QwenImageImg2ImgPipeline"),
        guidance_key="true_cfg_scale",
        licence=APACHE,
    ),
    "QwenImageEditInpaintPipeline": Family(
        Usual(50, 4.0),
        ("QwenImageEditPipeline", "QwenImageEditPlusPipeline"),
        guidance_key="true_cfg_scale",
        only_size=True,
        pictures=True,
        licence=APACHE,
    ),
    "ZImageInpaintPipeline": Family(Usual(50, 5.0), ("ZImagePipeline", "ZImageImg2ImgPipeline"), licence=APACHE),
    "KandinskyInpaintCombinedPipeline": Family(
        Usual(100, 4.0), multiple=64, size=512, pictures=True, batches=False, licence=APACHE
    ),
    "KandinskyV22InpaintCombinedPipeline": Family(
        Usual(100, 4.0), multiple=64, size=512, pictures=True, batches=False, licence=APACHE
    ),
}

_CONTROL = "it needs a control image beside the picture and the mask"
_PRIOR = "it is the decoder alone; save it together with its prior as Kandinsky…InpaintCombinedPipeline"
#: classes of diffusers with an inpainting name, and why they are refused
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "FluxControlInpaintPipeline",
            "FluxControlNetInpaintPipeline",
            "QwenImageControlNetInpaintPipeline",
            "StableDiffusion3ControlNetInpaintingPipeline",
            "StableDiffusionControlNetInpaintPipeline",
            "StableDiffusionControlNetPAGInpaintPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
            "StableDiffusionXLControlNetUnionInpaintPipeline",
            "ZImageControlNetInpaintPipeline",
        ),
        _CONTROL,
    ),
    **dict.fromkeys(("KandinskyInpaintPipeline", "KandinskyV22InpaintPipeline"), _PRIOR),
    "IFInpaintingPipeline": "it computes 64 pixels a side, and a second pipeline enlarges them",
    "IFInpaintingSuperResolutionPipeline": "it enlarges the result of another pipeline",
    "AmusedInpaintPipeline": "diffusers has deprecated it",
    "EasyAnimateInpaintPipeline": "it inpaints videos",
    "StableAudio3InpaintPipeline": "it inpaints sound",
    "OnnxStableDiffusionInpaintPipeline": "it needs ONNX Runtime",
    "OnnxStableDiffusionInpaintPipelineLegacy": "it needs ONNX Runtime",
    "StableDiffusionInpaintPipelineLegacy": "diffusers has deprecated it",
}


#: A class that the table lacks, because a later diffusers has brought it, is called like Stable Diffusion.
UNLISTED = Family(STABLE_DIFFUSION)


def inpainting_class(kind: str) -> tuple[str, Family] | None:
    """Return the class that inpaints with the components of a folder of class `kind`, and how. None: no class can."""
    if kind in FAMILIES:
        return kind, FAMILIES[kind]
    for name, family in FAMILIES.items():
        if kind in family.others:
            return name, family
    unlisted = kind.endswith("InpaintPipeline") and kind not in REFUSED and _has_class(kind)
    return (kind, UNLISTED) if unlisted else None


def _has_class(name: str) -> bool:
    """Return whether the installed diffusers has a class. Its `__init__.py` is read and not run."""
    found = importlib.util.find_spec("diffusers")
    if found is None or found.origin is None:
        return False
    return f'"{name}"' in Path(found.origin).read_text(encoding="utf-8")
