"""Run an inpainting pipeline of diffusers on batches of square images."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.models.generators import Family
from ovseg_batch.models.pipelines import PipelineSpec
from ovseg_batch.types.arrays import Floats, Mask, Pixels

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Request:
    """A square to inpaint.

    Attributes:
        image: (S, S, 3) uint8.
        mask: (S, S) bool, pixels to replace.
        prompt, negative_prompt: texts that guide the model towards and away from a content.
        seed: seed of the noise.
    """

    image: Pixels
    mask: Mask
    prompt: str
    negative_prompt: str
    seed: int


def seed_of(key: str, seed: int, number: int) -> int:
    """Return the seed of a request. It depends only on the image's key, the run's seed and the request's number."""
    digest = hashlib.blake2b(f"{seed}\0{number}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Inpainter:
    """A loaded inpainting pipeline.

    Args:
        family: how the pipeline's class is called.
    """

    def __init__(self, pipeline: Any, family: Family) -> None:
        self._pipeline, self._family = pipeline, family
        self._takes = set(inspect.signature(pipeline.__call__).parameters)

    @classmethod
    def load(
        cls, spec: PipelineSpec, device: torch.device, kind: str, offload: str = "none", slicing: bool = False
    ) -> Inpainter:
        """Load local safetensors weights in the precision `kind`. No network is used.

        Args:
            offload: `none`; or `model` or `sequential`, which keep only active modules on the GPU and need accelerate.
            slicing: compute attention head by head, which is slower and needs less memory.

        Raises:
            OvsegError: the folder cannot be loaded.
        """
        # Imported here: diffusers queries CUDA on import, after which forked processes could not use a GPU.
        import diffusers
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        if offload != "none" and (device.type != "cuda" or importlib.util.find_spec("accelerate") is None):
            raise UsageError(
                f"inpaint.offload: {offload} needs a GPU and the package accelerate. Run `pip install accelerate`."
            )
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        loader: Any = getattr(diffusers, spec.loader)
        options: dict[str, Any] = {"dtype": DTYPES[kind], "local_files_only": True, "use_safetensors": True}
        if _only_half(spec):
            options["variant"] = "fp16"
        try:
            pipeline = loader.from_pretrained(str(spec.folder), **options)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise OvsegError(
                f"The inpainting pipeline in {spec.folder} does not load: {type(error).__name__}: {error}. "
                "Fetch it again, or save it again with diffusers."
            ) from None
        pipeline.set_progress_bar_config(disable=True)
        if slicing:
            pipeline.enable_attention_slicing()
        _place(pipeline, device, offload)
        return cls(pipeline, spec.family)

    def paint(self, requests: Sequence[Request], steps: int, guidance: float, strength: float) -> list[Floats | None]:
        """Paint a batch.

        Args:
            requests: squares of equal side, which the family can compute.
            steps: number of denoising steps.
            guidance: scale of classifier-free guidance.
            strength: share of the noise that is added to the image, in (0, 1].

        Returns:
            (S, S, 3) float32 in [0, 1] per request; None where a safety checker withheld the image.
        """
        if not self._family.batches and len(requests) > 1:
            return [picture for one in requests for picture in self.paint([one], steps, guidance, strength)]
        side, family = requests[0].image.shape[0], self._family
        images, masks = _pictures(requests) if family.pictures else _tensors(requests)
        options: dict[str, Any] = {
            "prompt": [request.prompt for request in requests],
            "image": images,
            "mask_image": masks,
            "height": side,
            "width": side,
            "num_inference_steps": steps,
            family.guidance_key: guidance,
            "strength": strength,
            "generator": [torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            "output_type": "np",
        }
        if family.negative_prompt:
            options["negative_prompt"] = [request.negative_prompt for request in requests]
        result = self._pipeline(**{name: value for name, value in options.items() if name in self._takes})
        flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(requests)
        pictures = [np.asarray(picture, np.float32) for picture in result.images]
        return [None if bad or not picture.any() else picture for bad, picture in zip(flagged, pictures, strict=True)]


def _tensors(requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (B, 3, S, S) and masks (B, 1, S, S), float32 in [0, 1]."""
    images = torch.from_numpy(np.stack([request.image for request in requests])).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(np.stack([request.mask for request in requests])).float()[:, None]


def _pictures(requests: Sequence[Request]) -> tuple[list[Image.Image], list[Image.Image]]:
    """Return images in RGB and masks in 8 bits of grey."""
    masks = [Image.fromarray(request.mask.astype(np.uint8) * 255) for request in requests]
    return [Image.fromarray(request.image) for request in requests], masks


def _place(pipeline: Any, device: torch.device, offload: str) -> None:
    """Move a pipeline to the device, or let it move its modules there while they are active."""
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)


def _only_half(spec: PipelineSpec) -> bool:
    """Return whether all weights in the folder are called `….fp16.safetensors`."""
    part = "unet" if (spec.folder / "unet").is_dir() else "transformer"
    files = list((spec.folder / part).glob("*.safetensors"))
    return bool(files) and all(".fp16." in file.name for file in files)
