"""Dense features of CLIP: a ViT whose last attention is replaced, so that patch features can be compared with words.

Supports every `VisionTransformer` of open_clip with standard blocks. Source: Wang et al., SCLIP, ECCV 2024. The
features are tested against its code (wangf3014/SCLIP).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from ovseg_batch.errors import UsageError
from ovseg_batch.methods.attention import Variant, attend, neighbourhood
from ovseg_batch.models import zoo
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.device import autocast, lower
from ovseg_batch.models.mask_tokens import MaskTokens
from ovseg_batch.models.regions import region_features
from ovseg_batch.models.spliced import correlated_values
from ovseg_batch.models.text import encode_tokens
from ovseg_batch.models.vit import embed, fuse_quick_gelu, query_key_value, run_block
from ovseg_batch.models.weights import load_weights, read_state_dict

TEXT_BATCH = 256  # prompts per batch
MISLEADING = "No pretrained weights loaded for model"  # start of a message of open_clip; they are loaded afterwards


class DenseClip:
    """A CLIP model that computes a feature for every patch.

    Args:
        model: an open_clip model with a `VisionTransformer`.
        tokenize: texts → (N, context) token ids.
        tokenizer_id: name of the tokenizer in cache keys.
        mean, std: mean and standard deviation of the three channels, for pixels in [0, 1].
        device, precision: device and precision of the image tower. Returned features are float32.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        tokenizer_id: str,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        precision: str,
    ) -> None:
        visual = model.visual
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
            raise UsageError(
                "Dense prediction needs one of open_clip's own ViTs without an attention pooler; "
                f"this model's image tower is a {type(visual).__name__}."
            )
        if not all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks):
            raise UsageError("Dense prediction needs open_clip's standard residual blocks; this ViT has others.")
        self.model = cast(Any, model.float().eval().to(device))
        self.tokenizer_id = tokenizer_id
        self._tokenize = tokenize
        self._prompts = BatchSize(TEXT_BATCH, "prompts")
        self.visual = self.model.visual
        self.activation: str = type(self.visual.transformer.resblocks[0].mlp.gelu).__name__
        fuse_quick_gelu(self.visual)
        lower(self.visual, precision)
        self._device, self._precision = device, precision
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)

    @classmethod
    def load(cls, spec: zoo.ModelSpec, device: torch.device, precision: str) -> DenseClip:
        """Load a model. All weights must match.

        Raises:
            OvsegError: the weights do not fit the architecture, or the file cannot be trusted or read.
        """
        model, tokenize, tokenizer_id, preprocess = build(spec)
        clip = cls(model, tokenize, tokenizer_id, preprocess["mean"], preprocess["std"], device, precision)
        if device.type == "cuda":
            clip.warm_up()
        return clip

    def warm_up(self) -> None:
        """Embed a grey image, so that a faulty device fails before the first shard."""
        side = self.image_size
        grey = torch.full((1, side, side, 3), 127, dtype=torch.uint8, device=self._device)
        self.image_features(self.normalise(grey))

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._device

    @property
    def patch(self) -> int:
        """The side of a patch in pixels."""
        return int(max(self.visual.patch_size))

    @property
    def image_size(self) -> int:
        """The side of the training images in pixels."""
        side: int = max(self.visual.image_size)
        return side

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The colour that `normalise` maps to 0: RGB in [0, 255]."""
        red, green, blue = (round(255 * float(part)) for part in self._mean.flatten())
        return red, green, blue

    @torch.inference_mode()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Return text features (P, D) float32 on the CPU, L2-normalised.

        They are always computed in fp32, so that a cache serves every precision.
        """

        def encode(batch: slice) -> Tensor:
            tokens = self._tokenize(prompts[batch]).to(self._device)
            return F.normalize(encode_tokens(self.model, tokens).float(), dim=-1).cpu()

        return torch.cat(self._prompts.run(len(prompts), encode))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images (B, H, W, 3) uint8 RGB on the device to (B, 3, H, W) float32, as CLIP was trained."""
        return (images.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std

    @torch.inference_mode()
    def forward_bare(self, images: Tensor) -> Tensor:
        """Return CLIP's image embedding (B, D), computed by open_clip."""
        with autocast(self._device, self._precision):
            features: Tensor = self.model.encode_image(images)
        return features

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """Return CLIP's image embedding at any image size. The position embedding is resized.

        Args:
            images: (B, 3, H, W) of `normalise`.

        Returns:
            (B, D) float32, L2-normalised.
        """
        with autocast(self._device, self._precision):
            x = embed(self.visual, images)
            for block in self.visual.transformer.resblocks:
                x = run_block(block, x)
            last = self.visual.final_ln_after_pool
            x = x if last else self.visual.ln_post(x)
            pooled = x[:, 1:].mean(dim=1) if self.visual.pool_type == "avg" else x[:, 0]
            pooled = self.visual.ln_post(pooled) if last else pooled
            features: Tensor = pooled @ self.visual.proj
        return F.normalize(features.float(), dim=-1)

    @torch.inference_mode()
    def patch_features(self, images: Tensor, variant: Variant, layers: Sequence[float] = (1.0,)) -> Tensor:
        """Return the patch features of `features_and_keys`."""
        return self._features(images, self._run(images, variant, layers)[0])

    @torch.inference_mode()
    def features_and_keys(
        self, images: Tensor, variant: Variant, layers: Sequence[float] = (1.0,)
    ) -> tuple[Tensor, Tensor]:
        """Return L2-normalised patch features, and the keys of the last tapped block.

        Args:
            images: (B, 3, H, W) of `normalise`; sides that are not multiples of the patch are cropped.
            variant: attention of the tapped blocks. Other blocks run as trained.
            layers: tapped blocks as fractions of the depth, 1 for the last. The output of each goes through ln_post and
                the projection and is L2-normalised. The mean of the outputs is normalised again.

        Returns:
            features (B, H // patch, W // patch, D) float32; keys (B, patches, width) float32 after the block's output
            projection, as in MaskCLIP's code (chongzhou96/MaskCLIP).
        """
        tapped_tokens, block, x = self._run(images, variant, layers)
        with autocast(self._device, self._precision):
            keys = block.attn.out_proj(query_key_value(block, x)[1].transpose(1, 2).flatten(2))
        return self._features(images, tapped_tokens), keys[:, 1:].float()

    @torch.inference_mode()
    def region_features(
        self, images: Tensor, correlation: Tensor, regions: Tensor, smallest_is_none: bool = False
    ) -> Tensor:
        """Return `regions.region_features` of one window: (gh, gw, D) float32."""
        with autocast(self._device, self._precision):
            return region_features(self.visual, images, correlation, regions, smallest_is_none)

    @torch.inference_mode()
    def correlated_values(self, images: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return `spliced.correlated_values` at this model's precision: (B, W, h, w) float32."""
        with autocast(self._device, self._precision):
            return correlated_values(self.visual, images, weights, grid).float()

    @torch.inference_mode()
    def projected(self, tokens: Tensor) -> Tensor:
        """Apply the last norm and the projection to tokens (N, W), and L2-normalise them: (N, D) float32."""
        with autocast(self._device, self._precision):
            found = self.visual.ln_post(tokens) @ self.visual.proj
        return F.normalize(found.float(), dim=-1)

    @torch.inference_mode()
    def mask_features(self, tokens: MaskTokens, images: Tensor, touched: Tensor) -> Tensor:
        """Return `MaskTokens.forward` at this model's precision: (B, M, D) float32."""
        with autocast(self._device, self._precision):
            features: Tensor = tokens(images, touched)
        return features

    def _features(self, images: Tensor, tapped_tokens: Sequence[Tensor]) -> Tensor:
        grid = (images.shape[2] // self.visual.patch_size[0], images.shape[3] // self.visual.patch_size[1])
        taps = [F.normalize(tokens[:, 1:].float(), dim=-1) for tokens in tapped_tokens]
        mean = taps[0] if len(taps) == 1 else F.normalize(torch.stack(taps).mean(dim=0), dim=-1)
        return mean.view(len(mean), *grid, -1)

    @torch.inference_mode()
    def tokens(self, images: Tensor, variant: Variant, layers: Sequence[float] = (1.0,)) -> list[Tensor]:
        """Return the projected tokens (B, 1 + patches, D) of every tapped block, the class token first."""
        return self._run(images, variant, layers)[0]

    def _run(self, images: Tensor, variant: Variant, layers: Sequence[float]) -> tuple[list[Tensor], Any, Tensor]:
        """Return `tokens`, the last tapped block, and the input of that block."""
        blocks = self.visual.transformer.resblocks
        taps, fused = ({max(1, round(f * len(blocks))) for f in fractions} for fractions in (layers, variant.fused))
        tapped_tokens: list[Tensor] = []
        below: list[tuple[Tensor, Tensor]] = []
        with autocast(self._device, self._precision):
            x = embed(self.visual, images)
            prior = self._prior(images, variant)
            for depth, block in enumerate(blocks, start=1):
                if depth in taps:
                    tapped_tokens.append(
                        self.visual.ln_post(_variant_block(block, x, variant, prior, below)) @ self.visual.proj
                    )
                if depth == max(taps):
                    break
                if depth in fused:
                    below.append(query_key_value(block, x)[:2])
                x = run_block(block, x)
        return tapped_tokens, block, x

    def _prior(self, images: Tensor, variant: Variant) -> Tensor | None:
        if not variant.spread:
            return None
        grid = (images.shape[2] // self.visual.patch_size[0], images.shape[3] // self.visual.patch_size[1])
        return neighbourhood(grid, variant.spread).to(self._device)


def build(spec: zoo.ModelSpec) -> tuple[nn.Module, Callable[[list[str]], Tensor], str, dict[str, Any]]:
    """Return a model of open_clip with its weights, the tokenizer and its name, and the preprocessing (`mean`, `std`).

    Raises:
        OvsegError: as `DenseClip.load`.
    """
    found = _embedded(spec.architecture) if spec.embedded else _named(spec)
    if spec.seed is None:
        _load_weights(found[0], spec)
    return found


def _variant_block(
    block: Any, x: Tensor, variant: Variant, prior: Tensor | None, below: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Compute one residual block with another attention."""
    q, k, v = query_key_value(block, x)
    attended = attend(q, k, v, variant, None if prior is None else prior.to(q.dtype), below)
    out: Tensor = block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    x = x + out if variant.residual else out
    if variant.mlp:
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x


def _embedded(architecture: str) -> tuple[nn.Module, Callable[[list[str]], Tensor], str, dict[str, Any]]:
    config = json.loads(zoo.embedded_file(architecture).read_text(encoding="utf-8"))
    merges = zoo.embedded_file("demo/bpe.txt.gz")
    tokenizer = SimpleTokenizer(bpe_path=str(merges), context_length=config["model_cfg"]["text_cfg"]["context_length"])
    digest = hashlib.blake2b(merges.read_bytes(), digest_size=8).hexdigest()
    return open_clip.model.CLIP(**config["model_cfg"]), tokenizer, f"bpe:{digest}", config["preprocess_cfg"]


def _named(spec: zoo.ModelSpec) -> tuple[nn.Module, Callable[[list[str]], Tensor], str, dict[str, Any]]:
    if spec.seed is not None:
        torch.manual_seed(spec.seed)
    with _true_messages():
        model = open_clip.create_model(spec.architecture, load_weights=False, pretrained_text=False)
        preprocess = open_clip.get_model_preprocess_cfg(model)
        tokenizer = open_clip.get_tokenizer(spec.architecture)
    return model, tokenizer, f"open_clip:{spec.architecture}", preprocess


@contextlib.contextmanager
def _true_messages() -> Iterator[None]:
    """Drop the misleading message of open_clip, and leave the root logger of a program as it is.

    open_clip logs with functions of the module `logging`. They install a handler where a program has none.
    """
    root = logging.getLogger()
    handlers = [] if root.handlers else [logging.lastResort or logging.NullHandler()]

    def is_true(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(MISLEADING)

    root.addFilter(is_true)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.removeFilter(is_true)
        for handler in handlers:
            root.removeHandler(handler)


def _load_weights(model: Any, spec: zoo.ModelSpec) -> None:
    state = read_state_dict(spec.weights)
    # entries of OpenAI's files that are not parameters
    for name in ("input_resolution", "context_length", "vocab_size"):
        state.pop(name, None)
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(model.logit_scale.shape)
    load_weights(model, state, spec.weights, f"the architecture {spec.architecture}")
