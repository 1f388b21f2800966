"""SAM2 for one image and many prompts, without float masks at full size.

The modules of the sam2 package compute everything except the products of the mask decoder (`mask_decoder.py`). Two
things differ from `SAM2ImagePredictor`: mask logits stay at the decoder's resolution until a mask is selected, and
tensors are channels last, as the next product needs them. The results are tested against that predictor.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.methods.voting import count_pixels
from ovseg_batch.models import presets, zoo
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.device import DTYPES, autocast, lower
from ovseg_batch.models.mask_decoder import MaskDecoder, laid_by_place
from ovseg_batch.models.weights import load_weights, read_state_dict
from ovseg_batch.types.arrays import Halves, Numbers, Pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as in sam2.utils.transforms
#: Prompts per decoder call. On a CPU, small batches are faster. On a GPU, 64 prompts of SAM 2.1 large take about
#: 1.3 GiB in bf16, which fits an 8 GB card beside the weights and the encoder; 256 would take 4.5 GiB.
POINTS_CPU, POINTS_GPU = 8, 64
#: `build_sam2` adds these to every config.
STABLE_MASKS = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}


@dataclass(frozen=True, slots=True)
class Embedding:
    """SAM2's features of an image, channels last, in the dtype of the decoder.

    Attributes:
        coarse: (1, C, h, w) features with stride 16.
        fine: the two finer maps, finest first.
        size: (H, W) of the image in pixels.
    """

    coarse: Tensor
    fine: tuple[Tensor, ...]
    size: tuple[int, int]


class Sam:
    """A SAM2 model on a device.

    Args:
        model: a model of the sam2 package.
        device, precision: device and precision of the model.
        points: prompts per decoder call. None: `POINTS_CPU` or `POINTS_GPU`.
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
        # otherwise computed again for every image
        encoder.trunk._get_pos_embed = functools.cache(encoder.trunk._get_pos_embed)

    @classmethod
    def load(cls, spec: zoo.ModelSpec, device: torch.device, precision: str, points: int | None = None) -> Sam:
        """Load a model. All weights must match. Formats: Meta's `{"model": …}` .pt files, or safetensors.

        Args: as for the class.

        Raises:
            OvsegError: the weights do not fit the config, or the file cannot be trusted or read.
        """
        if spec.is_sam1:
            from ovseg_batch.models.sam1 import Sam1  # it imports this module

            return Sam1.load(spec, device, precision, points)
        sam = cls(load_own(spec), device, precision, points)
        if device.type == "cuda":
            sam.warm_up()
        return sam

    def warm_up(self) -> None:
        """Compute the masks of one point in a grey image, so that a faulty device fails before the first shard."""
        [embedding] = self.embed([np.full((self.image_size, self.image_size, 3), 127, np.uint8)])
        self.predict(embedding, np.full((1, 2), self.image_size / 2, np.float32))

    @property
    def image_size(self) -> int:
        side: int = self.model.image_size
        return side

    @torch.inference_mode()
    def preprocess(self, image: Pixels) -> Tensor:
        """Resize (H, W, 3) uint8 RGB to (3, s, s) float32 on the device, with antialiasing as in torchvision."""
        pixels = torch.from_numpy(image).to(self._device)
        side = (self.image_size, self.image_size)
        channels = []
        for channel in range(3):  # one at a time: three float32 channels of 100 megapixels take 1.2 GB
            plane = pixels[None, None, :, :, channel].float()
            plane = F.interpolate(plane, side, mode="bilinear", align_corners=False, antialias=True)
            channels.append(plane[0].div_(255).sub_(MEAN[channel]).div_(STD[channel]))
        return torch.cat(channels)

    @torch.inference_mode()
    def embed(self, images: Sequence[Pixels]) -> list[Embedding]:
        """Encode images (H, W, 3) uint8 RGB of any size in one batch."""
        coarse, fine = self.forward_bare(torch.stack([self.preprocess(image) for image in images]))
        coarse, *fine = (self._ready(part) for part in (coarse, *fine))
        return [
            Embedding(coarse[k : k + 1], tuple(f[k : k + 1] for f in fine), (image.shape[0], image.shape[1]))
            for k, image in enumerate(images)
        ]

    def _ready(self, features: Tensor) -> Tensor:
        """Convert features to the layout and dtype of the decoder."""
        return features.to(self._device, DTYPES[self._precision], memory_format=torch.channels_last)

    @staticmethod
    def arrays_of(embedding: Embedding) -> dict[str, Halves]:
        """Return the arrays of an embedding to store: `coarse`, `fine0`, `fine1`, (C, h, w) fp16."""
        parts = {"coarse": embedding.coarse, **{f"fine{k}": part for k, part in enumerate(embedding.fine)}}
        return {name: part[0].half().cpu().numpy() for name, part in parts.items()}

    def embedding_of(self, arrays: Mapping[str, Numbers], size: tuple[int, int]) -> Embedding:
        """Return the embedding of stored arrays, for an image of (H, W) pixels."""
        coarse, *fine = (self._ready(torch.from_numpy(arrays[name])[None]) for name in ("coarse", "fine0", "fine1"))
        return Embedding(coarse, tuple(fine), size)

    @torch.inference_mode()
    def forward_bare(self, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the image encoder on (B, 3, s, s). Return the features of stride 16, and two finer maps, finest first."""
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
        points: Numbers | None,
        boxes: Numbers | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
        stable: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Compute the masks of P prompts: points, boxes or both, optionally with mask logits.

        Args:
            embedding: embedding of the image.
            points: (P, 2) float x, y in pixels of the original image.
            boxes: (P, 4) float x0, y0, x1, y1 in the same pixels.
            masks: (P, s / 4, s / 4) float32 mask logits over the whole image.
            multimask: compute three masks per prompt, otherwise one.
            stable: replace an unstable single mask by the best of three, if the model was trained for that.

        Returns:
            mask logits (P, 3 or 1, s / 4, s / 4) float32, positive inside; predicted IoU (P, 3 or 1) float32.
        """
        h, w = embedding.size
        scale = torch.tensor([self.image_size / w, self.image_size / h], device=self._device)
        corners = [] if boxes is None else [np.asarray(boxes, np.float32).reshape(-1, 2, 2)]
        places = [] if points is None else [np.asarray(points, np.float32)[:, None]]
        coordinates = torch.from_numpy(np.concatenate([*corners, *places], axis=1)).to(self._device) * scale
        labels = [*([2, 3] if corners else []), *([1] if places else [])]  # of SAM2's prompts
        kinds = torch.tensor(labels, dtype=torch.int32, device=self._device)
        grid = (embedding.coarse.shape[-2], embedding.coarse.shape[-1])
        finest, finer = (laid_by_place(part, grid) for part in embedding.fine)

        def decode(batch: slice) -> tuple[Tensor, Tensor]:
            rough = None if masks is None else masks[batch, None]
            features = (embedding.coarse, finer, finest)
            return self._decode(features, coordinates[batch], kinds, rough, multimask, stable)

        parts = self.points.run(len(coordinates), decode)
        return torch.cat([logits for logits, _ in parts]), torch.cat([rated for _, rated in parts])

    def _decode(
        self,
        features: tuple[Tensor, Tensor, Tensor],
        coordinates: Tensor,
        kinds: Tensor,
        masks: Tensor | None,
        multimask: bool,
        stable: bool,
    ) -> tuple[Tensor, Tensor]:
        coarse, finer, finest = features
        count, dtype, grid = len(coordinates), DTYPES[self._precision], (coarse.shape[-2], coarse.shape[-1])
        decoder = self.model.sam_mask_decoder
        with autocast(self._device, self._precision):
            sparse, dense = self.model.sam_prompt_encoder(
                points=(coordinates, kinds.expand(count, -1)), boxes=None, masks=masks
            )
            if masks is None:
                dense = dense[:1]  # equal for all prompts
            own = [decoder.iou_token, decoder.mask_tokens]
            own = [decoder.obj_score_token, *own] if decoder.pred_obj_scores else own
            tokens = torch.cat([token.weight for token in own]).expand(count, -1, -1)
            tokens = torch.cat([tokens, sparse], dim=1).to(dtype)
            image = _places(coarse + dense.to(dtype))
            tokens, seen = self._decoder.transform(image, self._position, tokens)
            of_masks = tokens[:, len(own) - 1 : len(own) - 1 + decoder.num_mask_tokens]
            logits = self._decoder.draw(of_masks, seen, finer, finest, grid)
            rated = decoder.iou_prediction_head(tokens[:, len(own) - 2])
            if multimask:
                logits, rated = logits[:, 1:], rated[:, 1:]
            elif stable and decoder.dynamic_multimask_via_stability:
                logits, rated = decoder._dynamic_multimask_via_stability(logits, rated)
            else:
                logits, rated = logits[:, :1], rated[:, :1]
        return logits.float(), rated.float()


def _places(features: Tensor) -> Tensor:
    """Reshape (B, C, h, w) to (B, h · w, C), without a copy if channels are last."""
    return features.flatten(2).transpose(1, 2)


class _NoPosition(nn.Module):
    """Replaces the position encoding of the neck, which only video memory uses."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(x.shape)


def foreground(logits: Tensor, least: float = 0.0) -> Tensor:
    """Return where mask logits exceed `least`: bool, same shape. NumPy is more than twice as fast as torch here."""
    return torch.from_numpy(logits.numpy() > least) if logits.device.type == "cpu" else logits > least


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """Return the IoU of the masks at thresholds `offset` and -`offset`: (…, h, w) → (…) float32 in [0, 1]."""
    inner, outer = (count_pixels(foreground(logits, least)) for least in (offset, -offset))
    return inner.float() / outer.float().clamp(min=1)


def load_own(spec: zoo.ModelSpec) -> nn.Module:
    """Load a model of the sam2 package with its weights, on the CPU. Raises OvsegError as `Sam.load`."""
    if spec.seed is not None:
        torch.manual_seed(spec.seed)
        return build(spec.architecture)
    model = build(spec.architecture)
    load_weights(model, read_state_dict(spec.weights), spec.weights, f"the SAM2 config {spec.architecture}")
    return model


def build(config: str) -> nn.Module:
    """Build a SAM2 without weights from a config of the sam2 package, or the embedded one, as `build_sam2` does.

    Hydra would search for the file and compose it, which takes longer than building the model.

    Raises:
        UsageError: the sam2 package has no such config.
    """
    if config == presets.SAM["demo"].architecture:
        file = zoo.embedded_file(config)
    else:
        file = Path(str(resources.files("sam2"))) / config
    if not file.is_file():
        names = sorted(str(path.relative_to(file.parents[2])) for path in file.parents[1].glob("*/*.yaml"))
        raise UsageError(f"sam.model: the sam2 package has no config {config!r}.{nearest(config, names)}")
    tree = OmegaConf.load(file)
    OmegaConf.update(tree, "model.sam_mask_decoder_extra_args", STABLE_MASKS, force_add=True)
    OmegaConf.resolve(tree)
    model: nn.Module = instantiate(tree.model, _recursive_=True)
    return model.eval()
