"""Propose: prompt SAM2 at a grid of points, and keep the masks without classes as RLE.

Other vocabularies and other ways to classify read the same proposals, so SAM2 runs once. What is computed is what
`SAM2AutomaticMaskGenerator` computes without crops; masks that its first filter drops are never brought to full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ovseg_batch.errors import RowError
from ovseg_batch.io import rle
from ovseg_batch.io.ahead import decode_ahead
from ovseg_batch.io.region_maps import read_region_map
from ovseg_batch.methods.proposals import keep_distinct, point_grid
from ovseg_batch.methods.resized_masks import MaskRuns, above
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.sam import Sam
from ovseg_batch.stages.base import Stage, Upstream, done, failed, read_limits
from ovseg_batch.stages.plans import FEATURE_SIDE, ProposePlan
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.types import ImageRow, Proposal, RowResult
from ovseg_batch.types.arrays import Halves, Pixels, SegmentMap


@dataclass(frozen=True, slots=True)
class _Found:
    proposals: list[Proposal]
    arrays: dict[str, Halves]


class ProposeStage(ProposePlan, Stage):
    """Prompts SAM2 at a grid of points."""

    def setup(self, device: str) -> None:
        if self._spec is not None:
            self._sam = Sam.load(self._spec, resolve_device(device), self._precision(), self._run.point_chunk)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        run = self._run
        for row, image in decode_ahead(rows, run.decode_threads, run.decode_bytes, read_limits(run)):
            if isinstance(image, RowError):
                yield failed(row, image.code, image.message)
                continue
            found = self._found(row, image)
            if isinstance(found, RowError):
                yield failed(row, found.code, found.message)
                continue
            points = self._settings.points_per_side**2 if self._masks is None else 0
            size = {"height": image.shape[0], "width": image.shape[1], "points": points}
            yield done(row, {**size, "proposals": found.proposals}, found.arrays)

    def _found(self, row: ImageRow, image: Pixels) -> _Found | RowError:
        if self._masks is None:
            [found] = split_on_failure(lambda one: [self._propose(one[0])], [image])
            return found
        try:
            return _Found(_proposals_of(read_region_map(self._masks, row.file_name, image.shape[:2])), {})
        except RowError as error:
            return error

    @torch.inference_mode()
    def _propose(self, image: Pixels) -> _Found:
        settings = self._settings
        [embedding] = self._sam.embed([image])
        points = point_grid(settings.points_per_side, embedding.size)
        found: list[Proposal] = []
        step = self._sam.points.items
        for start in range(0, len(points), step):  # in parts, because the masks of all points would not fit into memory
            prompts = points[start : start + step]
            logits, rated = self._sam.predict(embedding, prompts, multimask=settings.multimask, stable=False)
            which = rated > settings.predicted_iou
            numbers, kept, scores = which.nonzero()[:, 0].tolist(), logits[which].float().cpu(), rated[which].tolist()
            for number, one, score in zip(numbers, kept, scores, strict=True):
                inner, mask, outer = (above(one.T, embedding.size[::-1], threshold) for threshold in (1.0, 0.0, -1.0))
                steady = inner.area() / max(outer.area(), 1)
                if steady >= settings.stability and mask.area():
                    point = tuple(prompts[number].tolist())
                    found.append(proposal_of(mask, score, steady, embedding.size, point))
        arrays = {"features": _pooled(embedding.coarse)} if self.arrays else {}
        return _Found(keep_distinct(found, settings.nms), arrays)


def proposal_of(
    mask: MaskRuns, rated: float, steady: float, size: tuple[int, int], point: tuple[float, ...]
) -> Proposal:
    """Return a mask that was computed along its columns, as RLE needs it.

    Args:
        rated, steady: SAM2's predicted IoU, and the stability.
        size: (H, W) of the image.
        point: x, y of the prompt in pixels.
    """
    counts = rle.from_counts(mask.counts(), *size)
    return Proposal(tuple(rle.bounding_box(counts, *size)), mask.area(), counts, rated, steady, point)


def _proposals_of(regions: SegmentMap) -> list[Proposal]:
    """Return the regions of a map as proposals, in the order of their numbers. They have no prompt: it is (-1, -1)."""
    size = (regions.shape[0], regions.shape[1])
    return [
        Proposal(tuple(rle.bounding_box(counts, *size)), rle.area(counts, *size), counts, 1.0, 1.0, (-1.0, -1.0))
        for _, counts in sorted(rle.encode_regions(regions).items())
    ]


def _pooled(features: torch.Tensor) -> Halves:
    """(1, C, h, w) → (C, ≤ 32, ≤ 32) fp16."""
    height, width = (min(side, FEATURE_SIDE) for side in features.shape[-2:])
    return F.adaptive_avg_pool2d(features.float(), (height, width))[0].half().cpu().numpy()
