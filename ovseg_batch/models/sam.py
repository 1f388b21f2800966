"""SAM2 for one image and many points, without the full-size float masks that its own predictor makes.

The sam2 package's modules compute it, but for the products of the mask decoder (`mask_decoder.py`). What differs from
`SAM2ImagePredictor` is that the mask logits stay at the decoder's resolution until somebody has chosen one, and that
tensors lie in memory as the next product wants them (channels last). Tested equal to that predictor.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from sam2.build_sam import build_sam2
from torch import Tensor, nn

from ovseg_batch.models import zoo
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.device import DTYPES, autocast, lower
from ovseg_batch.models.mask_decoder import MaskDecoder, laid_by_place
from ovseg_batch.models.weights import load_weights, read_state_dict

Array = np.ndarray[Any, Any]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as sam2.utils.transforms
#: Prompts of a decoder call. On a CPU many at once are slower than few. On a GPU 64 prompts of SAM 2.1 large take about
#: 1.3 GiB in bf16, so that they fit an 8 GB card beside the weights and the encoder; 256 would take 4.5 GiB.
POINTS_CPU, POINTS_GPU = 8, 64


@dataclass(frozen=True, slots=True)
class Embedding:
    """What SAM2 knows of an image: the stride-16 features (1, C, h, w), the two finer maps, finest first, and the
    image's (H, W) in pixels. They are channels last and of the type that the decoder computes in."""

    coarse: Tensor
    fine: tuple[Tensor, ...]
    size: tuple[int, int]


class Sam:
    """A SAM2 model on a device.

    Args:
        model: the sam2 package's own.
        device, precision: where and how it runs.
        points: prompts of a decoder call; None: `POINTS_CPU` or `POINTS_GPU`.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str, points: int | None = None) -> None:
        usual = POINTS_GPU if device.type == "cuda" else POINTS_CPU
        self.points = BatchSize(points or usual, "points")
        self.model = cast(Any, model.float().eval().to(device))
        self._decoder = MaskDecoder(self.model.sam_mask_decoder, DTYPES[precision])
        lower(model, precision)
        self._device, self._precision = device, precision
        with torch.inference_mode():
            position = self.model.sam_prompt_encoder.get_dense_pe().to(DTYPES[precision])
        self._position = _places(position).contiguous()
        encoder = self.model.image_encoder
        encoder.neck.position_encoding = _NoPosition()
        encoder.trunk._get_pos_embed = functools.cache(encoder.trunk._get_pos_embed)  # else made anew for every image

    @classmethod
    def load(cls, spec: zoo.ModelSpec, device: torch.device, precision: str, points: int | None = None) -> Sam:
        """Build by the sam2 package and load weights strictly: Meta's `{"model": …}` .pt files, or safetensors.

        Args: as the class takes them.

        Raises:
            OvsegError: weights that do not fit the config, or a file that cannot be trusted or read.
        """
        sam = cls(load_own(spec), device, precision, points)
        if device.type == "cuda":
            sam.warm_up()
        return sam

    def warm_up(self) -> None:
        """Compute the masks of one point in a grey image: a device that does not work must fail before a shard."""
        [embedding] = self.embed([np.full((self.image_size, self.image_size, 3), 127, np.uint8)])
        self.predict(embedding, np.full((1, 2), self.image_size / 2, np.float32))

    @property
    def image_size(self) -> int:
        side: int = self.model.image_size
        return side

    @torch.inference_mode()
    def preprocess(self, image: Array) -> Tensor:
        """(H, W, 3) uint8 RGB → (3, s, s) float32, resized on the device with antialiasing as torchvision does."""
        pixels = torch.from_numpy(image).to(self._device)
        side = (self.image_size, self.image_size)
        channels = []
        for channel in range(3):  # one at a time: as float32, the three of 100 megapixels would be 1.2 GB
            plane = pixels[None, None, :, :, channel].float().div_(255)
            plane = F.interpolate(plane, side, mode="bilinear", align_corners=False, antialias=True)
            channels.append(plane[0].sub_(MEAN[channel]).div_(STD[channel]))
        return torch.cat(channels)

    @torch.inference_mode()
    def embed(self, images: Sequence[Array]) -> list[Embedding]:
        """Run the image encoder once for all images (each (H, W, 3) uint8 RGB, of any size)."""
        coarse, fine = self.forward_bare(torch.stack([self.preprocess(image) for image in images]))
        coarse, *fine = (self._ready(part) for part in (coarse, *fine))
        return [
            Embedding(coarse[k : k + 1], tuple(f[k : k + 1] for f in fine), (image.shape[0], image.shape[1]))
            for k, image in enumerate(images)
        ]

    def _ready(self, features: Tensor) -> Tensor:
        """As the decoder takes them up."""
        return features.to(self._device, DTYPES[self._precision], memory_format=torch.channels_last)

    @staticmethod
    def arrays_of(embedding: Embedding) -> dict[str, Array]:
        """The embedding as it is kept: `coarse`, `fine0`, `fine1`, (C, h, w) fp16."""
        parts = {"coarse": embedding.coarse, **{f"fine{k}": part for k, part in enumerate(embedding.fine)}}
        return {name: part[0].half().cpu().numpy() for name, part in parts.items()}

    def embedding_of(self, arrays: Mapping[str, Array], size: tuple[int, int]) -> Embedding:
        """What `arrays_of` has kept of an image of (H, W) pixels."""
        coarse, *fine = (self._ready(torch.from_numpy(arrays[name])[None]) for name in ("coarse", "fine0", "fine1"))
        return Embedding(coarse, tuple(fine), size)

    @torch.inference_mode()
    def forward_bare(self, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The image encoder on (B, 3, s, s): stride-16 features and the two finer maps, finest first."""
        with autocast(self._device, self._precision):
            pyramid = self.model.forward_image(batch.contiguous(memory_format=torch.channels_last))["backbone_fpn"]
            coarse = pyramid[-1]
            if self.model.directly_add_no_mem_embed:
                coarse = coarse + self.model.no_mem_embed.view(1, -1, 1, 1)
        return coarse, list(pyramid[:-1])

    @torch.inference_mode()
    def predict(
        self,
        embedding: Embedding,
        points: Array,
        boxes: Array | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Compute the masks of P prompts, each a point and, where given, a box and a rough mask.

        Args:
            embedding: of the image.
            points: (P, 2) float x, y in pixels of the original image.
            boxes: (P, 4) float x0, y0, x1, y1 in the same pixels.
            masks: (P, s / 4, s / 4) float32 mask logits over the whole image.
            multimask: three masks for each prompt, else one.

        Returns:
            mask logits (P, 3 or 1, s / 4, s / 4) float32, 0 is the edge; predicted IoU (P, 3 or 1) float32.
        """
        h, w = embedding.size
        scale = torch.tensor([self.image_size / w, self.image_size / h], device=self._device)
        corners = [] if boxes is None else [np.asarray(boxes, np.float32).reshape(-1, 2, 2)]
        prompts = np.concatenate([*corners, np.asarray(points, np.float32)[:, None]], axis=1)
        coordinates = torch.from_numpy(prompts).to(self._device) * scale
        kinds = torch.tensor([1] if boxes is None else [2, 3, 1], dtype=torch.int32, device=self._device)
        grid = (embedding.coarse.shape[-2], embedding.coarse.shape[-1])
        finest, finer = (laid_by_place(part, grid) for part in embedding.fine)

        def decode(batch: slice) -> tuple[Tensor, Tensor]:
            rough = None if masks is None else masks[batch, None]
            return self._decode(embedding.coarse, (finer, finest), coordinates[batch], kinds, rough, multimask)

        parts = self.points.run(len(coordinates), decode)
        return torch.cat([logits for logits, _ in parts]), torch.cat([rated for _, rated in parts])

    def _decode(
        self,
        coarse: Tensor,
        fine: tuple[Tensor, Tensor],
        coordinates: Tensor,
        kinds: Tensor,
        masks: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        count, dtype, grid = len(coordinates), DTYPES[self._precision], (coarse.shape[-2], coarse.shape[-1])
        decoder = self.model.sam_mask_decoder
        with autocast(self._device, self._precision):
            sparse, dense = self.model.sam_prompt_encoder(
                points=(coordinates, kinds.expand(count, -1)), boxes=None, masks=masks
            )
            if masks is None:
                dense = dense[:1]  # the same for every prompt
            own = [decoder.iou_token, decoder.mask_tokens]
            own = [decoder.obj_score_token, *own] if decoder.pred_obj_scores else own
            tokens = torch.cat([token.weight for token in own]).expand(count, -1, -1)
            tokens = torch.cat([tokens, sparse], dim=1).to(dtype)
            image = _places(coarse + dense.to(dtype))
            tokens, seen = self._decoder.transform(image, self._position, tokens)
            of_masks = tokens[:, len(own) - 1 : len(own) - 1 + decoder.num_mask_tokens]
            logits = self._decoder.draw(of_masks, seen, *fine, grid)
            rated = decoder.iou_prediction_head(tokens[:, len(own) - 2])
            if multimask:
                logits, rated = logits[:, 1:], rated[:, 1:]
            elif decoder.dynamic_multimask_via_stability:
                logits, rated = decoder._dynamic_multimask_via_stability(logits, rated)
            else:
                logits, rated = logits[:, :1], rated[:, :1]
        return logits.float(), rated.float()

    @staticmethod
    def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
        """(K, s, s) mask logits at the original (H, W), bilinear as the predictor does."""
        return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def _places(features: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h · w, C), a view where they are channels last."""
    return features.flatten(2).transpose(1, 2)


class _NoPosition(nn.Module):
    """Replaces the neck's position encoding, which only the memory of videos uses."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(x.shape)


def foreground(logits: Tensor) -> Tensor:
    """Where mask logits are above 0, their edge: bool, same shape. NumPy compares in less than half of torch's time."""
    return torch.from_numpy(logits.numpy() > 0) if logits.device.type == "cpu" else logits > 0


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """IoU of the mask cut a little above and a little below its edge: (…, h, w) → (…) float32 in [0, 1]."""
    inner = (logits > offset).sum(dim=(-2, -1)).float()
    outer = (logits > -offset).sum(dim=(-2, -1)).float()
    return inner / outer.clamp(min=1)


def load_own(spec: zoo.ModelSpec) -> nn.Module:
    """The sam2 package's own model with its weights, on the CPU. Raises OvsegError as `Sam.load`."""
    if spec.weights.startswith(zoo.RANDOM):
        torch.manual_seed(int(spec.weights.removeprefix(zoo.RANDOM)))
        return build(spec.architecture)
    model = build(spec.architecture)
    load_weights(model, read_state_dict(spec.weights), spec.weights, f"the SAM2 config {spec.architecture}")
    return model


def build(config: str) -> nn.Module:
    """A SAM2 without weights, from a config of the sam2 package or the embedded one."""
    if config != "demo/sam2.yaml":
        model: nn.Module = build_sam2(config, None, device="cpu")
        return model
    file = zoo.embedded_file(config)
    GlobalHydra.instance().clear()  # Hydra knows one search path at a time
    try:
        with initialize_config_dir(str(file.parent), version_base="1.2"):
            model = build_sam2(file.name, None, device="cpu")
    finally:
        GlobalHydra.instance().clear()
        initialize_config_module("sam2", version_base="1.2")
    return model
