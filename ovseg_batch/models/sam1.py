"""SAM of the first version, behind the interface of `Sam`. transformers builds the model.

SAM sees an image whose longer side has `image_size` pixels, padded at the bottom and on the right to a square. The
encoder computes in the chosen precision, prompts and masks in fp32. Source: Kirillov et al., Segment Anything, ICCV
2023. The results are tested against its code (facebookresearch/segment-anything).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ovseg_batch.methods.windows import long_side_size, rounded_up
from ovseg_batch.models import zoo
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.device import autocast, lower
from ovseg_batch.models.sam import MEAN, POINTS_CPU, POINTS_GPU, STD, Embedding, Sam
from ovseg_batch.models.weights import load_weights, read_state_dict
from ovseg_batch.types.arrays import Halves, Numbers, Pixels

DECODER_EPS = 1e-5  # of the norms in the published mask decoder; transformers has 1e-6
RANDOM_STD = 0.02
#: names in the published files → names in transformers
NAMES = (
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"point_embeddings\.", "point_embed."),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
)
SHARED = ("prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")


@dataclass(frozen=True, slots=True)
class LastAttention:
    """The attention of the encoder's last block between the n = h · w patches of an image without its padding.

    Attributes:
        heads: the (n, n) attention of each head, computed when it is read. Rows sum to at most 1, because the patches
            of the padding have a share.
        values: (heads, n, d).
        grid: (h, w).
    """

    heads: Iterator[Tensor]
    values: Tensor
    grid: tuple[int, int]


class Sam1(Sam):
    """A SAM on a device.

    Args:
        model: a `SamModel` of transformers.
        device, precision: device of the model, and precision of its encoder.
        points: prompts per decoder call. None: `POINTS_CPU` or `POINTS_GPU`.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str, points: int | None = None) -> None:
        self.points = BatchSize(points or (POINTS_GPU if device.type == "cuda" else POINTS_CPU), "points")
        self.model = cast(Any, model.float().eval().to(device))
        lower(self.model.vision_encoder, precision)
        self._device, self._precision = device, precision
        with torch.inference_mode():
            self._position = self.model.get_image_wide_positional_embeddings()

    @classmethod
    def load(cls, spec: zoo.ModelSpec, device: torch.device, precision: str, points: int | None = None) -> Sam1:
        """Load a model. All weights must match. Formats: Meta's .pth files, or safetensors of transformers.

        Args, Raises: as `Sam.load`.
        """
        sam = cls(_load(spec), device, precision, points)
        if device.type == "cuda":
            sam.warm_up()
        return sam

    @property
    def image_size(self) -> int:
        return int(self.model.vision_encoder.image_size)

    @property
    def patch(self) -> int:
        """The side of a patch in pixels."""
        return int(self.model.config.vision_config.patch_size)

    @property
    def cells(self) -> int:
        """The side of a map of mask logits."""
        return self.image_size // self.patch * 4

    @torch.inference_mode()
    def preprocess(self, image: Pixels) -> Tensor:
        """Resize (H, W, 3) uint8 RGB with Pillow, as the published code does, and pad it: (3, s, s) float32."""
        h, w = self.seen_size(image.shape[:2])
        small = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(small.copy()).to(self._device).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values, device=self._device).view(3, 1, 1) for values in (MEAN, STD))
        return F.pad((pixels - mean) / std, (0, self.image_size - w, 0, self.image_size - h))

    @torch.inference_mode()
    def embed(self, images: Sequence[Pixels]) -> list[Embedding]:
        """Encode images (H, W, 3) uint8 RGB of any size in one batch. The padding is part of the embedding."""
        coarse, _ = self.forward_bare(torch.stack([self.preprocess(image) for image in images]))
        coarse = coarse.float()
        return [Embedding(coarse[k : k + 1], (), (image.shape[0], image.shape[1])) for k, image in enumerate(images)]

    @staticmethod
    def arrays_of(embedding: Embedding) -> dict[str, Halves]:
        """Return the array of an embedding to store: `coarse` (C, h, w) fp16."""
        return {"coarse": embedding.coarse[0].half().cpu().numpy()}

    def embedding_of(self, arrays: Mapping[str, Numbers], size: tuple[int, int]) -> Embedding:
        """Return the embedding of a stored array, for an image of (H, W) pixels."""
        return Embedding(torch.from_numpy(arrays["coarse"])[None].float().to(self._device), (), size)

    @torch.inference_mode()
    def forward_bare(self, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the image encoder on (B, 3, s, s). Return the features of stride 16, and no finer maps."""
        with autocast(self._device, self._precision):
            encoder = self.model.vision_encoder
            x = self._below(batch)
            coarse: Tensor = encoder.neck(encoder.layers[-1](x))
        return coarse, []

    @torch.inference_mode()
    def last_attention(self, image: Pixels) -> LastAttention:
        """Return the attention of the encoder's last block after the softmax, with the relative positions.

        Args:
            image: (H, W, 3) uint8 RGB of any size.
        """
        layer = self.model.vision_encoder.layers[-1]
        rows, columns = (side // self.patch for side in self.seen_size(image.shape[:2]))
        with autocast(self._device, self._precision):
            x = layer.layer_norm1(self._below(self.preprocess(image)[None]))
            side, heads = x.shape[1], layer.attn.num_attention_heads
            query, key, value = layer.attn.qkv(x).view(side, side, 3, heads, -1).permute(2, 3, 0, 1, 4)
            down = layer.attn.get_rel_pos(side, side, layer.attn.rel_pos_h)[:rows]
            across = layer.attn.get_rel_pos(side, side, layer.attn.rel_pos_w)[:columns]
        query = query[:, :rows, :columns]

        def attention(head: int) -> Tensor:
            with torch.inference_mode(), autocast(self._device, self._precision):
                q = query[head]
                logits = torch.einsum("hwc,xyc->hwxy", q * layer.attn.scale, key[head])
                logits = logits + torch.einsum("hwc,hxc->hwx", q, down)[..., None]
                logits = logits + torch.einsum("hwc,wyc->hwy", q, across)[..., None, :]
                weights = logits.float().flatten(2).softmax(dim=-1).view(rows, columns, side, side)
            return weights[:, :, :rows, :columns].reshape(rows * columns, rows * columns)

        values = value[:, :rows, :columns].flatten(1, 2).float()
        return LastAttention(map(attention, range(heads)), values, (rows, columns))

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
        """Compute the masks of P prompts, as `Sam.predict`. `stable` has no effect on this model.

        The mask logits cover the image without its padding.
        """
        if masks is not None:
            valid = long_side_size(embedding.size[0], embedding.size[1], self.cells)
            masks = F.interpolate(masks[:, None], valid, mode="bilinear", align_corners=False)
            masks = self.dense_prompts(F.pad(masks, (0, self.cells - valid[1], 0, self.cells - valid[0])))
        logits, rated = self.decode(embedding, points, boxes, masks, multimask)
        return self.resized(logits, embedding.size, (self.cells, self.cells)), rated

    @torch.inference_mode()
    def dense_prompts(self, masks: Tensor) -> Tensor:
        """Embed mask logits (P, 1, s / 4, s / 4), which cover the padded image: (P, C, s / 16, s / 16)."""
        found: Tensor = self.model.prompt_encoder.mask_embed(masks.to(self._device))
        return found

    @torch.inference_mode()
    def row_normalised_prompt(self, mask: Tensor) -> Tensor:
        """Embed mask logits (1, s / 4, s / 4) as Trident's code does: (1, C, s / 16, s / 16).

        The code passes the map without a batch axis. So SAM's two norms, which are over the channels, are over the rows
        of a column.
        """
        embed = self.model.prompt_encoder.mask_embed

        def normalised(x: Tensor, norm: Any) -> Tensor:
            centred = x - x.mean(dim=1, keepdim=True)
            scaled = centred / torch.sqrt(centred.square().mean(dim=1, keepdim=True) + norm.eps)
            out: Tensor = embed.activation(norm.weight[:, None, None] * scaled + norm.bias[:, None, None])
            return out

        x = normalised(embed.conv1(mask.to(self._device)), embed.layer_norm1)
        found: Tensor = embed.conv3(normalised(embed.conv2(x), embed.layer_norm2))
        return found[None]

    @torch.inference_mode()
    def decode(
        self,
        embedding: Embedding,
        points: Numbers | None,
        boxes: Numbers | None = None,
        dense: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Compute the masks of P prompts in the padded frame.

        Args:
            embedding, points, boxes, multimask: as for `predict`.
            dense: (1 or P, C, s / 16, s / 16) of `dense_prompts`; 1 if equal for all prompts.

        Returns:
            mask logits (P, 3 or 1, s / 4, s / 4) float32 over the padded image; predicted IoU (P, 3 or 1) float32.
        """
        h, w = embedding.size
        seen = self.seen_size(embedding.size)
        scale = np.array([seen[1] / w, seen[0] / h], np.float32)
        placed = None if points is None else self._placed(np.asarray(points, np.float32).reshape(-1, 1, 2) * scale)
        framed = None if boxes is None else self._placed(np.asarray(boxes, np.float32).reshape(-1, 2, 2) * scale)
        prompts = cast(Tensor, framed if placed is None else placed)
        labels = torch.ones(len(prompts), 1, dtype=torch.int64, device=self._device)

        def part(batch: slice) -> tuple[Tensor, Tensor]:
            sparse, usual = self.model.prompt_encoder(
                None if placed is None else placed[None, batch],
                None if placed is None else labels[None, batch],
                None if framed is None else framed[batch].reshape(1, -1, 4),
                None,
            )
            given = usual if dense is None else dense if len(dense) == 1 else dense[batch]
            count = sparse.shape[1]
            image = embedding.coarse.expand(count, -1, -1, -1) + given
            logits, rated = self.model.mask_decoder(
                image,
                self._position.expand(count, -1, -1, -1),
                sparse[0][:, None],
                torch.zeros_like(image[:1]),
                multimask,
            )
            return logits[:, 0], rated[:, 0]

        parts = self.points.run(len(prompts), part)
        return torch.cat([logits for logits, _ in parts]), torch.cat([rated for _, rated in parts])

    @torch.inference_mode()
    def resized(self, logits: Tensor, size: tuple[int, int], at: tuple[int, int]) -> Tensor:
        """Resize mask logits of `decode` (P, M, s / 4, s / 4) bilinearly to (P, M, *at), without the padding.

        Args:
            size: (H, W) of the image that SAM has seen.
            at: (H, W) of the result.
        """
        h, w = self.seen_size(size)
        whole = F.interpolate(logits, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
        return F.interpolate(whole[..., :h, :w], at, mode="bilinear", align_corners=False)

    def seen_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return (H, W) of an image of another (H, W) in the padded square."""
        return long_side_size(size[0], size[1], self.image_size)

    def _placed(self, coordinates: Numbers) -> Tensor:
        return torch.from_numpy(np.asarray(coordinates, np.float32)).to(self._device)

    def _below(self, batch: Tensor) -> Tensor:
        """Return the input of the encoder's last block: (B, s / 16, s / 16, C)."""
        encoder = self.model.vision_encoder
        x: Tensor = encoder.patch_embed(batch) + encoder.pos_embed
        for layer in encoder.layers[:-1]:
            x = layer(x)
        return x


def enlarged(image: Pixels, multiple: int) -> Pixels:
    """Return an image (H, W, 3) with both sides rounded up to multiples of some pixels, as Trident's code gives SAM."""
    height, width = rounded_up(image.shape[0], image.shape[1], multiple)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _load(spec: zoo.ModelSpec) -> nn.Module:
    """Build a SAM with its weights, on the CPU."""
    from transformers import SamConfig, SamModel  # its import takes half a second, and few runs use SAM 1

    if spec.architecture.startswith(zoo.FOLDER):
        config = SamConfig.from_pretrained(Path(spec.architecture.removeprefix(zoo.FOLDER)), local_files_only=True)
    else:
        config = SamConfig()
    cast(Any, config).mask_decoder_config.layer_norm_eps = DECODER_EPS
    model = SamModel(config)
    if spec.seed is not None:
        torch.manual_seed(spec.seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=RANDOM_STD)
        return model
    state = renamed(read_state_dict(spec.weights))
    load_weights(model, state, spec.weights, f"the SAM {spec.architecture}")
    return model


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of Meta or of transformers with the names of transformers."""
    found = {}
    of_meta = any(name.startswith("image_encoder.") for name in state)
    for name, tensor in state.items():
        if of_meta:
            for pattern, replacement in NAMES:
                name = re.sub(pattern, replacement, name)
        found[name] = tensor
    for one, other in (SHARED, SHARED[::-1]):
        if one in found:
            found.setdefault(other, found[one])
    return found
