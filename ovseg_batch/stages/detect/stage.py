"""Detect: OWLv2 proposes boxes, SAM2 draws a mask in each, and the boxes' embeddings are kept for any words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ovseg_batch.errors import RowError
from ovseg_batch.io.ahead import decode_ahead
from ovseg_batch.methods.detection import best_boxes
from ovseg_batch.methods.resized_masks import above
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.owl import Owl
from ovseg_batch.models.sam import Sam, stability
from ovseg_batch.stages.base import Stage, Upstream, done, failed, read_limits
from ovseg_batch.stages.detect.plan import DetectPlan
from ovseg_batch.stages.propose import proposal_of
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.types import ImageRow, Proposal, RowResult
from ovseg_batch.types.arrays import AnyArray, Floats, Pixels


@dataclass(frozen=True, slots=True)
class _Found:
    """The masks of an image, and their arrays with one line for each."""

    boxes: int
    proposals: list[Proposal]
    arrays: dict[str, AnyArray]


class DetectStage(DetectPlan, Stage):
    """Prompts SAM2 with the boxes of OWLv2."""

    def setup(self, device: str) -> None:
        target = resolve_device(device)
        self._owl = Owl.load(self._owl_spec, target, self._owl_precision())
        self._sam = Sam.load(self._sam_spec, target, self._sam_precision(), self._run.point_chunk)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        run = self._run
        for row, image in decode_ahead(rows, run.decode_threads, run.decode_bytes, read_limits(run)):
            if isinstance(image, RowError):
                yield failed(row, image.code, image.message)
                continue
            [found] = split_on_failure(lambda one: [self._detect(one[0])], [image])
            if isinstance(found, RowError):
                yield failed(row, found.code, found.message)
                continue
            values = {"height": image.shape[0], "width": image.shape[1], "boxes": found.boxes}
            yield done(row, {**values, "proposals": found.proposals}, found.arrays)

    @torch.inference_mode()
    def _detect(self, image: Pixels) -> _Found:
        settings, detected = self._settings, self._owl.detect(image)
        boxes, objectness = detected.boxes.cpu().numpy(), detected.objectness.cpu().numpy()
        chosen = best_boxes(boxes, objectness, settings.boxes, settings.objectness)
        masks = self._masks(image, boxes[chosen])
        drawn = [k for k, proposal in enumerate(masks) if proposal is not None]
        proposals = [proposal for proposal in masks if proposal is not None]
        if not drawn:
            return _Found(len(chosen), [], {})
        kept = torch.from_numpy(chosen[drawn]).to(detected.boxes.device)
        embeddings, calibration = (part[kept].cpu() for part in (detected.embeddings, detected.calibration))
        arrays = {"embeddings": embeddings.half().numpy(), "calibration": calibration.numpy()}
        return _Found(len(chosen), proposals, arrays)

    def _masks(self, image: Pixels, boxes: Floats) -> list[Proposal | None]:
        """Return SAM2's mask of each box (N, 4), None where it is empty. The prompt is the centre of the box."""
        found: list[Proposal | None] = []
        if not len(boxes):
            return found
        [embedding] = self._sam.embed([image])
        step = self._sam.points.items
        for start in range(0, len(boxes), step):  # in parts, because the masks of all boxes would not fit into memory
            prompts = boxes[start : start + step]
            logits, rated = self._sam.predict(embedding, None, prompts, multimask=False)
            maps, centres = logits[:, 0].float().cpu(), (prompts[:, :2] + prompts[:, 2:]) / 2
            parts = (maps, rated[:, 0].tolist(), stability(maps).tolist(), centres.tolist())
            for one, score, steady, centre in zip(*parts, strict=True):
                mask = above(one.T, embedding.size[::-1])
                drawn = mask.area() > 0
                found.append(proposal_of(mask, score, steady, embedding.size, tuple(centre)) if drawn else None)
        return found
