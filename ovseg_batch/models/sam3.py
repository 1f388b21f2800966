"""SAM 3: masks of every object that a phrase names, from one image and many words. transformers builds the model.

An image is encoded once. Its tokens are rounded to float16, so that stored tokens give the same masks. Words are the
batch of the detector, and the words of a run share an image. Masks are computed only for words whose best score
reaches a floor, and only for the queries that reach it. Source: Carion et al., SAM 3: Segment Anything with Concepts,
2025. The results are tested against `Sam3Model` and `Sam3Processor` of transformers.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg_batch.errors import OvsegError
from ovseg_batch.models import zoo
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.clip_tokens import token_ids
from ovseg_batch.models.device import autocast, lower
from ovseg_batch.models.sam3_layout import sam3_layout
from ovseg_batch.models.weights import load_weights, read_state_dict
from ovseg_batch.types.arrays import Floats, Halves, Indices, Pixels
from ovseg_batch.units import counted

MIDDLE = 127.5  # mean and standard deviation of the pixels: the model takes values in [-1, 1]
DETECTOR, TRACKER = "detector_model.", ("tracker_model.", "tracker_neck.")  # prefixes of keys in the published file
META = "detector.backbone."  # prefix of keys in the file that Meta publishes beside it
WORDS_GPU = 8  # words per call of the detector

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WordFeatures:
    """The encoded prompts of P words.

    Attributes:
        features: (P, context, C) float32, on the device of the model.
        valid: (P, context) bool, which of them are tokens of the prompt.
    """

    features: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True)
class WordAnswer:
    """What SAM 3 finds of one word in an image. Q is the number of its queries.

    Attributes:
        presence: probability that the word is in the image.
        scores: (Q,) float32, probability of each query's object, with the presence.
        boxes: (Q, 4) float32 x0, y0, x1, y1 as shares of the image. They reach outside of [0, 1].
        kept: (K,) queries whose score reaches the floor.
        masks: (K, h, w) float32 on the CPU, probability of each kept query's pixels.
        soft: (h, w) float32 on the CPU, probability that a pixel shows the word. None where no query is kept, unless
            the maps of all words are computed.
    """

    presence: float
    scores: Floats
    boxes: Floats
    kept: Indices
    masks: Tensor
    soft: Tensor | None


@dataclass(frozen=True, slots=True)
class _Pyramid:
    """The features of an image, finest first, and the position encoding of the coarsest."""

    levels: tuple[Tensor, ...]
    position: Tensor


class Sam3:
    """A SAM 3 on a device.

    Args:
        model: a `Sam3Model` or `Sam3LiteTextModel` of transformers.
        device, precision: device and precision of the model. Results are float32.
        words: words per call of the detector on a GPU. None: `WORDS_GPU`. A CPU computes one word at a time, because
            one fills it, and because its products of several words have other last bits at other places of a batch.
        context: most tokens of a prompt.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, precision: str, words: int | None = None, context: int = 32
    ) -> None:
        from transformers.models.sam3 import modeling_sam3

        self.model = cast(Any, model.float().eval().to(device))
        lower(self.model, precision)
        self.words = BatchSize(words or WORDS_GPU, "words")
        self.alone = device.type == "cpu"
        self._device, self._precision, self._context = device, precision, context
        self._functions = modeling_sam3

    @classmethod
    def load(
        cls,
        spec: zoo.ModelSpec,
        device: torch.device,
        precision: str,
        words: int | None = None,
        side: int | None = None,
    ) -> Sam3:
        """Load a model. The file must have all of its weights, and may have others.

        Args:
            spec: of the kind `sam3`.
            device, precision, words: as for the class.
            side: side in pixels of the square that the model sees. None: that of its training.

        Raises:
            OvsegError: the weights do not fit the architecture, or the file cannot be trusted or read.
        """
        return cls(build(spec, side), device, precision, words, spec.context)

    @property
    def side(self) -> int:
        """The side in pixels of the square that the model sees."""
        return int(self.model.config.image_size)

    @property
    def grid(self) -> int:
        """The number of image tokens on a side."""
        return self.side // int(self.model.config.vision_config.backbone_config.patch_size)

    def forget(self) -> None:
        """Delete the parts of the model that no further image needs: text encoder and geometry encoder."""
        for name in ("text_encoder", "text_projection", "geometry_encoder"):
            setattr(self.model, name, None)

    @torch.inference_mode()
    def encode_words(self, prompts: Sequence[str]) -> WordFeatures:
        """Encode prompts, each alone, so that its features do not depend on the others.

        Raises:
            ValueError: a prompt has more tokens than the model reads.
        """
        features, valid = [], []
        for prompt in prompts:
            ids = token_ids(prompt)
            if len(ids) > self._context:
                raise ValueError(f"the prompt {prompt!r} has {len(ids)} tokens, more than {self._context}")
            padded = torch.zeros(1, self._context, dtype=torch.long, device=self._device)
            padded[0, : len(ids)] = torch.tensor(ids, device=self._device)
            used = torch.arange(self._context, device=self._device)[None] < len(ids)
            with autocast(self._device, self._precision):
                found = self.model.get_text_features(input_ids=padded, attention_mask=used.long(), return_dict=True)
            features.append(found.pooler_output.float())
            valid.append(used)
        if not features:
            width = self.model.config.detr_encoder_config.hidden_size
            empty = torch.zeros(0, self._context, device=self._device)
            return WordFeatures(empty[..., None].expand(-1, -1, width), empty.bool())
        return WordFeatures(torch.cat(features), torch.cat(valid))

    def preprocess(self, image: Pixels) -> Tensor:
        """Resize (H, W, 3) uint8 RGB to the square that the model sees: (3, s, s) float32 in [-1, 1], on the device."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        if pixels.shape[-2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, (self.side, self.side), mode="bilinear", antialias=True)
        return (pixels[0].float().to(self._device) - MIDDLE) / MIDDLE

    @torch.inference_mode()
    def see(self, image: Pixels) -> Halves:
        """Encode an image (H, W, 3) uint8 RGB of any size: its tokens (s / patch, s / patch, C) float16.

        Raises:
            ValueError: a value of the tokens is not finite in float16.
        """
        with autocast(self._device, self._precision):
            tokens = self.model.vision_encoder.backbone(self.preprocess(image)[None]).last_hidden_state[0]
        tokens = tokens.half()
        if not bool(torch.isfinite(tokens).all()):
            raise ValueError("SAM 3's image encoder returns values that are not finite")
        found: Halves = tokens.view(self.grid, self.grid, -1).cpu().numpy()
        return found

    @torch.inference_mode()
    def answer(
        self,
        tokens: Halves,
        words: WordFeatures,
        floor: float,
        keep: Callable[[int, WordAnswer], T],
        chosen: Sequence[int] | None = None,
        all_maps: bool = False,
    ) -> list[T]:
        """Search an image for words.

        A GPU computes batches of equal size, which are filled with repetitions of the last word. So an answer does not
        depend on the other words.

        Args:
            tokens: result of `see`.
            words: result of `encode_words`.
            floor: lowest score of a query whose mask is computed, in [0, 1].
            keep: takes the index of a word and its answer. What it returns is all that stays in memory.
            chosen: indices of the words to search for. None: all.
            all_maps: compute the soft map of words without a kept query, too.

        Returns:
            the result of `keep` for every word, in order.
        """
        indices = list(range(len(words)) if chosen is None else chosen)
        if not indices:
            return []
        pyramid = self._pyramid(tokens)

        def batch(part: slice) -> list[T]:
            own, size = indices[part], 1 if self.alone else self.words.items
            kept: list[T] = []
            for start in range(0, len(own), size):
                several = own[start : start + size]
                filled = several + several[-1:] * (size - len(several))
                batched = words.features[filled], words.valid[filled]
                answers = self._answers(pyramid, *batched, floor, len(several), all_maps)
                kept += [keep(index, answer) for index, answer in zip(several, answers, strict=True)]
            return kept

        return [one for part in self.words.run(len(indices), batch) for one in part]

    def _pyramid(self, tokens: Halves) -> _Pyramid:
        """Compute the three levels of features that the detector uses."""
        neck = self.model.vision_encoder.neck
        image = torch.tensor(tokens, device=self._device).float().permute(2, 0, 1)[None]
        with autocast(self._device, self._precision):
            levels = tuple(layer(image) for layer in neck.fpn_layers[:-1])
        coarse = levels[-1]
        return _Pyramid(levels, neck.position_encoding(coarse.shape, coarse.device, coarse.dtype))

    def _answers(
        self, pyramid: _Pyramid, features: Tensor, valid: Tensor, floor: float, count: int, all_maps: bool
    ) -> Iterator[WordAnswer]:
        """Yield the answers of the first `count` words of a batch."""
        model, many = self.model, (len(features), -1, -1, -1)
        with autocast(self._device, self._precision):
            seen = model.detr_encoder(
                vision_features=[pyramid.levels[-1].expand(many)],
                text_features=features,
                vision_pos_embeds=[pyramid.position.expand(many)],
                text_mask=valid,
            )
            found = model.detr_decoder(
                vision_features=seen.last_hidden_state,
                text_features=features,
                vision_pos_encoding=seen.pos_embeds_flattened,
                text_mask=valid,
                spatial_shapes=seen.spatial_shapes,
            )
            queries = found.intermediate_hidden_states[-1]
            moved = model.detr_decoder.box_head(queries)
            logits = model.dot_product_scoring(queries[None], features, valid)[0, ..., 0]
        centres = (self._functions.inverse_sigmoid(found.reference_boxes[-1].float()) + moved.float()).sigmoid()
        boxes = self._functions.box_cxcywh_to_xyxy(centres).cpu().numpy()
        presence = found.presence_logits[-1].float().sigmoid()
        scores = logits.float().sigmoid() * presence
        reached = scores >= floor
        for index in range(count):
            kept = reached[index].nonzero()[:, 0]
            masks, soft = torch.zeros(0, 0, 0), None
            if all_maps or len(kept):
                masks, soft = self._masks(pyramid, seen.last_hidden_state, features, valid, queries, index, kept)
            own = scores[index].cpu().numpy(), boxes[index], kept.cpu().numpy()
            yield WordAnswer(float(presence[index, 0]), *own, masks, soft)

    def _masks(
        self,
        pyramid: _Pyramid,
        seen: Tensor,
        features: Tensor,
        valid: Tensor,
        queries: Tensor,
        index: int,
        kept: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute the masks of the kept queries of one word, and its soft map, as probabilities on the CPU."""
        one = slice(index, index + 1)
        with autocast(self._device, self._precision):
            drawn = self.model.mask_decoder(
                decoder_queries=queries[one, kept],
                backbone_features=list(pyramid.levels),
                encoder_hidden_states=seen[one],
                prompt_features=features[one],
                prompt_mask=valid[one],
            )
        return drawn.pred_masks[0].float().sigmoid().cpu(), drawn.semantic_seg[0, 0].float().sigmoid().cpu()


def build(spec: zoo.ModelSpec, side: int | None = None) -> nn.Module:
    """Build a SAM 3 with its weights, on the CPU. Args, Raises: as `Sam3.load`."""
    import transformers

    layout = sam3_layout(spec.architecture)
    config = getattr(transformers, f"{layout.kind}Config")(**copy.deepcopy(layout.config))
    config.image_size = side or spec.window
    kind = getattr(transformers, f"{layout.kind}Model")
    if spec.seed is not None:
        torch.manual_seed(spec.seed)
        random: nn.Module = kind(config)
        return random
    state = detector_state(read_state_dict(spec.weights))
    if any(name.startswith(META) for name in state):
        raise OvsegError(
            f"{spec.weights} has the names of Meta's own file of SAM 3. Take model.safetensors of the repository "
            "facebook/sam3 on the Hugging Face hub, which has those of transformers."
        )
    model: nn.Module = kind(config)
    own = model.state_dict().keys()
    if others := [name for name in state if name not in own]:
        log.info("%s: %s not used (%s …)", spec.weights, counted(len(others), "tensor is", "tensors are"), others[0])
    load_weights(model, {name: state[name] for name in state if name in own}, spec.weights, f"SAM 3 {spec.name}")
    return model


def detector_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the detector under its own names, without those of the tracker beside it."""
    own = {name: value for name, value in state.items() if not name.startswith(TRACKER)}
    if any(name.startswith(DETECTOR) for name in own):
        return {name.removeprefix(DETECTOR): value for name, value in own.items()}
    return own
