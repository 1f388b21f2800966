"""Embed: compute and store CLIP's features of every proposal, so that other words and thresholds run no image model.

There are two scorers: crops of each mask at several sizes, and mask tokens, which process all masks of an image in one
forward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import cv2
import numpy as np
import torch

from ovseg_batch.errors import RowError
from ovseg_batch.io import rle
from ovseg_batch.io.ahead import decode_ahead
from ovseg_batch.methods.crops import isolated_crop, resized_crop
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.mask_tokens import MaskTokens, load_tuned, touched_patches
from ovseg_batch.stages.base import Stage, Upstream, done, failed, read_limits, ready
from ovseg_batch.stages.plans import EmbedPlan
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.types import ImageRow, Proposal, RowResult
from ovseg_batch.types.arrays import Mask, Numbers, Pixels

MASKS = 4096  # mask tokens of one forward


class EmbedStage(EmbedPlan, Stage):
    """Embeds every proposal with CLIP."""

    def setup(self, device: str) -> None:
        settings = self._settings
        self._device = resolve_device(device)
        self._clip = DenseClip.load(self._spec, self._device, self._precision())
        self._batch = BatchSize(self._run.batch_size, "crops")
        self._masks = BatchSize(MASKS, "mask tokens")
        self._tokens: MaskTokens | None = None
        if settings.scorer == "mask-tokens":
            visual = self._clip.visual
            self._tokens = load_tuned(visual, settings.tuned) if settings.tuned else MaskTokens(visual)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        run = self._run
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        for row, image in decode_ahead(todo, run.decode_threads, run.decode_bytes, read_limits(run)):
            if isinstance(image, RowError):
                yield failed(row, image.code, image.message)
                continue
            proposals = upstream["propose"].values(row.row)["proposals"]
            found: RowResult | RowError
            try:
                [found] = split_on_failure(functools.partial(self._one, row, proposals), [image])
            except RowError as error:
                found = error
            yield failed(row, found.code, found.message) if isinstance(found, RowError) else found

    @torch.inference_mode()
    def _one(self, row: ImageRow, proposals: Sequence[Proposal], images: Sequence[Pixels]) -> list[RowResult]:
        [image] = images
        if not proposals:
            return [done(row, {"masks": 0, "forwards": 0})]
        size = (image.shape[0], image.shape[1])
        masks = (rle.decode_placed(proposal.rle, *size) for proposal in proposals)
        if self._tokens is not None:
            features, forwards = self._by_tokens(self._tokens, image, (mask.whole(size) for mask in masks)), 1
        else:
            features = self._by_crops(image, masks)
            forwards = features.shape[0] * features.shape[1]
        values = {"masks": len(proposals), "forwards": forwards}
        return [done(row, values, {"features": features.astype(np.float16)})]

    def _by_tokens(self, tokens: MaskTokens, image: Pixels, masks: Iterable[Mask]) -> Numbers:
        side = self._clip.image_size
        small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        batch = self._clip.normalise(torch.from_numpy(small)[None].to(self._device))
        grid = (side // self._clip.patch, side // self._clip.patch)
        touched = torch.cat([touched_patches(torch.from_numpy(mask)[None], grid) for mask in masks])

        def encode(masks: slice) -> Numbers:  # a mask's token sees the picture's patches and no other mask's token
            features = self._clip.mask_features(tokens, batch, touched[None, masks].to(self._device))
            return features.cpu().numpy()

        return np.concatenate(self._masks.run(len(touched), encode), axis=1)

    def _by_crops(self, image: Pixels, masks: Iterable[PlacedMask]) -> Numbers:
        settings, patch = self._settings, self._clip.patch
        sides = [max(1, round(scale * self._clip.image_size / patch)) * patch for scale in settings.scales]
        pictures: list[list[Pixels]] = [[] for _ in sides]
        for mask in masks:  # one at a time, because a crop may be as large as the image
            crop = isolated_crop(image, mask, self._clip.mean_colour, settings.outside)
            for side, of_side in zip(sides, pictures, strict=True):
                of_side.append(resized_crop(crop, side))
        return np.stack([self._encoded(of_side) for of_side in pictures])

    def _encoded(self, pictures: Sequence[Pixels]) -> Numbers:
        """(M, D) of pictures of one size."""

        def encode(batch: slice) -> Numbers:
            pixels = torch.from_numpy(np.stack(pictures[batch])).to(self._device)
            features: Numbers = self._clip.image_features(self._clip.normalise(pixels)).cpu().numpy()
            return features

        return np.concatenate(self._batch.run(len(pictures), encode))
