"""Dense features of TIPSv2: patches that were trained to be compared with words. transformers builds the model.

The patches are used as trained, without another attention. The image tower computes in the chosen precision, the text
tower in fp32. Source: Cao et al., TIPSv2: Advancing Vision-Language Pretraining with Enhanced Patch-Text Alignment,
CVPR 2026. The features are tested against transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg_batch.errors import UsageError
from ovseg_batch.io.hashing import file_hash
from ovseg_batch.methods.attention import VARIANTS, Variant
from ovseg_batch.models import zoo
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.clip_tokens import require_short
from ovseg_batch.models.device import autocast, lower
from ovseg_batch.models.tipsv2_layout import tipsv2_layout
from ovseg_batch.models.tipsv2_names import of_transformers
from ovseg_batch.models.tipsv2_tokens import token_ids
from ovseg_batch.models.weights import load_weights, own_weights, random_or_empty, read_state_dict

TEXT_BATCH = 256  # prompts per batch


class Tipsv2:
    """A TIPSv2 on a device.

    Args:
        model: a `Tipsv2Model` of transformers.
        tokenizer: file of its tokenizer.
        device, precision: device of the model, and precision of its image tower. Returned features are float32.
    """

    def __init__(self, model: nn.Module, tokenizer: str, device: torch.device, precision: str) -> None:
        self.model = cast(Any, own_weights(model.float().eval()).to(device))
        self.tokenizer_id = f"{Path(tokenizer).suffix}:{file_hash(tokenizer)}"
        self._vision, self._text = self.model.config.vision_config, self.model.config.text_config
        self.activation: str = "swiglu" if self._vision.use_swiglu_ffn else self._vision.hidden_act
        lower(self.model.vision_model, precision)
        self._tokenizer, self._prompts = tokenizer, BatchSize(TEXT_BATCH, "prompts")
        self._device, self._precision = device, precision

    @classmethod
    def load(cls, spec: zoo.ModelSpec, device: torch.device, precision: str) -> Tipsv2:
        """Load a model. All weights must match.

        Raises:
            OvsegError: the weights do not fit the architecture, or a file cannot be trusted or read.
        """
        encoder = cls(load_model(spec), spec.tokenizer, device, precision)
        if device.type == "cuda":  # a faulty device fails before the first shard
            side = encoder.image_size
            encoder.image_features(encoder.normalise(torch.full((1, side, side, 3), 127, dtype=torch.uint8).to(device)))
        return encoder

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._device

    @property
    def patch(self) -> int:
        """The side of a patch in pixels."""
        return int(self._vision.patch_size)

    @property
    def image_size(self) -> int:
        """The side of the training images in pixels."""
        return int(self._vision.image_size)

    @torch.inference_mode()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Return text features (P, D) float32 on the CPU, L2-normalised, computed in fp32.

        The text tower ignores padding, so prompts of one length are computed together without it.

        Raises:
            UsageError: a prompt has more tokens than the tower takes.
        """
        ids_of = functools.partial(token_ids, file=self._tokenizer)
        require_short(prompts, self._text.max_position_embeddings, "TIPSv2", ids=ids_of)
        known = [ids_of(prompt) for prompt in prompts]

        def encode(batch: slice) -> Tensor:
            ids = known[batch]
            features = torch.zeros(len(ids), self._text.hidden_size)
            for length in sorted({len(one) for one in ids}):
                rows = [row for row, one in enumerate(ids) if len(one) == length]
                tokens = torch.tensor([ids[row] for row in rows], device=self._device)
                pooled = self.model.get_text_features(input_ids=tokens).pooler_output
                features[rows] = F.normalize(pooled.float(), dim=-1).cpu()
            return features

        return torch.cat(self._prompts.run(len(prompts), encode))

    def normalise(self, images: Tensor) -> Tensor:
        """Convert images (B, H, W, 3) uint8 RGB on the device to (B, 3, H, W) float32 in [0, 1]."""
        return images.permute(0, 3, 1, 2).float() / 255

    @torch.inference_mode()
    def forward_bare(self, images: Tensor) -> Tensor:
        """Run the image tower on (B, 3, H, W). Return the class tokens (B, D) float32."""
        pooled: Tensor = self._run(images).pooler_output
        return pooled.float()

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """Return the class tokens (B, D) float32 of (B, 3, H, W), L2-normalised. Words of a caption compare with it."""
        return F.normalize(self.forward_bare(images), dim=-1)

    @torch.inference_mode()
    def patch_features(self, images: Tensor, variant: Variant, layers: Sequence[float] = (1.0,)) -> Tensor:
        """Return the patch features of the last block.

        Args:
            images: (B, 3, H, W) of `normalise`; sides that are not multiples of the patch are cropped.
            variant: `vanilla`.
            layers: (1.0,).

        Returns:
            (B, H // patch, W // patch, D) float32, L2-normalised.

        Raises:
            ValueError: another variant or other layers.
        """
        if variant is not VARIANTS["vanilla"] or tuple(layers) != (1.0,):
            raise ValueError("TIPSv2 has no attention but its own, and its last block alone compares with words.")
        tokens = self._run(images).last_hidden_state[:, 1 + self._vision.num_register_tokens :]
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        return F.normalize(tokens.float(), dim=-1).reshape(len(images), *grid, -1)

    def _run(self, images: Tensor) -> Any:
        with autocast(self._device, self._precision):
            return self.model.get_image_features(pixel_values=images)


def load_model(spec: zoo.ModelSpec) -> nn.Module:
    """Return a `Tipsv2Model` with its weights, on the CPU. Raises as `Tipsv2.load`."""
    from transformers import Tipsv2Config, Tipsv2Model  # takes seconds

    try:
        config: Any = Tipsv2Config(**tipsv2_layout(spec.name).config)
    except Exception as error:  # transformers and its checks raise many classes
        first = str(error).strip().partition("\n")[0]
        raise UsageError(f"clip.model {spec.name!r}: transformers refuses its config: {first}") from None
    model: Any = random_or_empty(lambda: Tipsv2Model(config), spec.seed)
    if spec.seed is not None:
        return cast(nn.Module, model)
    state = of_transformers(read_state_dict(spec.weights))
    state.setdefault("temperature", torch.tensor(config.temperature_init_value))  # published files lack it
    load_weights(model, state, spec.weights, f"the TIPSv2 {spec.name}", assign=True)
    words = model.text_model.embeddings
    length, table = config.text_config.max_position_embeddings, words.position_embedding
    table.weights = table.get_embedding(length, config.text_config.hidden_size)
    words.position_ids = torch.arange(length).expand((1, -1))
    loaded: nn.Module = model
    return loaded
