"""Refine: points from the dense map prompt SAM2, and a vote keeps the masks that agree with the map.

One image embedding an image, prompts in chunks, the best of three masks chosen at low resolution; a mask is made at
full size only to be painted, one at a time, and each instance is run-length encoded once at the original size.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io.ahead import decode_ahead
from ovseg_batch.methods.class_scores import pool_background, vocabulary_probabilities
from ovseg_batch.methods.labelling import closed, label_map, resampled
from ovseg_batch.methods.maskclip import RULED_OUT, denoise_prompts
from ovseg_batch.methods.pamr import enlarged, pamr
from ovseg_batch.methods.presence import CLEAR, SURE, Presence
from ovseg_batch.methods.prompts import PointPrompt
from ovseg_batch.methods.proposals import region_classes
from ovseg_batch.methods.stitching import Stitched
from ovseg_batch.methods.tiles import Box
from ovseg_batch.methods.vocabulary import UNLABELLED
from ovseg_batch.methods.voting import Segment, Vote
from ovseg_batch.methods.windows import window_boxes
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.encoders import load_encoder
from ovseg_batch.models.sam import Embedding, Sam
from ovseg_batch.models.sam1 import Sam1
from ovseg_batch.settings.readers import POINTING
from ovseg_batch.stages.answer import Answer, DenseMap, Painting, annotate_with_outcomes
from ovseg_batch.stages.base import Stage, Upstream, done, failed, read_limits, ready
from ovseg_batch.stages.dense import cosines
from ovseg_batch.stages.plans import embedding_shapes
from ovseg_batch.stages.refine.memory_bank import Relabeller
from ovseg_batch.stages.refine.methods import NOTHING, Found, guided, points_of, prompted, trident, voted
from ovseg_batch.stages.refine.overlap import in_three_steps
from ovseg_batch.stages.refine.plan import RefinePlan
from ovseg_batch.stages.refine.sam_map import refined_labels
from ovseg_batch.stages.regions import region_map
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.stages.text import word_features
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.types.arrays import Indices, Narrow, Numbers, Pixels


@dataclass(slots=True)
class _Underway:
    """An image that is being processed, with its intermediate results."""

    row: ImageRow
    image: Pixels | None
    upstream: Mapping[str, Upstream]
    error: RowError | None = None
    dense: DenseMap | None = None
    points: list[PointPrompt] = field(default_factory=list)
    found: Found = NOTHING
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) as CLIP saw it."""
        values = self.upstream["dense"].values(self.row.row)
        return values["height"], values["width"]

    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def result(self) -> RowResult:
        if self.error is not None:
            return failed(self.row, self.error.code, self.error.message)
        return done(self.row, self.values)


class RefineStage(RefinePlan, Stage):
    """Turns the dense map and SAM2's masks into annotations."""

    def setup(self, device: str) -> None:
        self._device = resolve_device(device)
        self._sam: Sam | None = None
        self._relabeller: Relabeller | None = None
        if self._spec is not None:
            self._sam = Sam.load(self._spec, self._device, self._precision(), self._run.point_chunk)
        if self._clip_spec is not None:
            clip = load_encoder(self._clip_spec, self._device, "fp32")  # for its words alone
            self._text = word_features(self._words, clip, self._clip_spec).to(self._device)
            if self._settings.bank:
                scale = self._dense.logit_scale
                self._relabeller = Relabeller(self._settings, scale, self._vocabulary, self._text, self._dense_inputs)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers

        def step(work: Callable[[_Underway], object]) -> Callable[[_Underway], _Underway]:
            """Return a step that converts errors into a failed row, and skips rows that have failed."""

            def do(one: _Underway) -> _Underway:
                if one.error is not None:
                    return one
                try:
                    [done] = split_on_failure(lambda alone: [work(alone[0])], [one])
                except RowError as error:
                    done = error
                if isinstance(done, RowError):
                    one.error, one.image, one.dense, one.found = done, None, None, NOTHING
                return one

            return do

        steps = step(self._read_dense), step(self._find_masks), step(self._annotate)

        def refined(rows: Sequence[ImageRow], overlapping: bool) -> Iterator[_Underway]:
            images = (
                _Underway(row, None, upstream, image)
                if isinstance(image, RowError)
                else _Underway(row, image, upstream)
                for row, image in self._images(rows)
            )
            return in_three_steps(images, *steps, _Underway.pixels, overlapping)

        overlapping = self._device.type == "cuda"
        alone: list[ImageRow] = []
        for one in refined(todo, overlapping):
            if overlapping and one.error is not None and one.error.code == FailureCode.OUT_OF_MEMORY:
                alone.append(one.row)  # its neighbours in the overlap took memory too
            else:
                yield one.result()
        for one in refined(alone, overlapping=False):
            yield one.result()

    def _images(self, rows: Sequence[ImageRow]) -> Iterator[tuple[ImageRow, Pixels | RowError | None]]:
        """Yield the decoded images, or None for each if no step needs pixels."""
        run = self._run
        if not self.reads_images:
            yield from ((row, None) for row in rows)
        else:
            yield from decode_ahead(rows, run.decode_threads, run.decode_bytes, read_limits(run))

    @torch.inference_mode()
    def _read_dense(self, one: _Underway) -> None:
        """Read the dense map, and compute the point prompts."""
        dense = one.dense = self._dense_map(one.upstream["dense"], one.row, one.size, one.image)
        if self._settings.method == "regions":
            proposals = one.upstream["propose"].values(one.row.row)["proposals"]
            regions = region_map(proposals, one.size, self._config)
            one.dense = dataclasses.replace(dense, labels=region_classes(regions, dense.labels))
        if self._sam is not None and self._settings.method in POINTING:
            one.points = points_of(dense, self._settings, self._min_area(one))

    @torch.inference_mode()
    def _find_masks(self, one: _Underway) -> None:
        one.found = self._found(one)
        one.image = None

    @torch.inference_mode()
    def _annotate(self, one: _Underway) -> None:
        """Compute annotations from the masks and the dense map."""
        assert one.dense is not None
        settings, min_area = self._settings, self._min_area(one)
        kept = None if settings.fallback == "none" else min_area if settings.output == "instances" else 1
        by_score, joined = settings.method in ("guided", "trident"), settings.output == "semantic"
        painting = Painting(min_area, kept, by_score, joined, self._paint)
        answer = Answer(one.size, one.found.candidates, one.found.mask_of, one.dense, self._spec is not None)
        relabel = None
        if self._relabeller is not None:
            relabel = functools.partial(self._renamed, self._relabeller, one.row, one.upstream["dense"])
        annotations, outcomes = annotate_with_outcomes(answer, self._vocabulary, painting, relabel)
        one.values = {
            "height": one.size[0],
            "width": one.size[1],
            "points": len(one.found.prompts),
            "annotations": annotations,
            "prompts": [
                {
                    "x": prompt.x,
                    "y": prompt.y,
                    "label": self._vocabulary.names[prompt.label],
                    "outcome": outcomes[prompt.result] if isinstance(prompt.result, int) else prompt.result,
                }
                for prompt in one.found.prompts
            ],
        }
        one.dense, one.found = None, NOTHING  # maps of an image that is done would be held beside the next one's

    def _min_area(self, one: _Underway) -> int:
        return max(1, math.ceil(self._settings.min_area * one.size[0] * one.size[1]))

    def _renamed(
        self, relabeller: Relabeller, row: ImageRow, upstream: Upstream, owner: Narrow, segments: Sequence[Segment]
    ) -> list[Segment]:
        """Return the segments with the classes of a memory bank."""
        values = upstream.values(row.row)
        resized = (values["resized_height"], values["resized_width"])
        boxes = window_boxes(*resized, self._window, self._stride)
        features = self._kept_of(upstream, row.row, boxes)
        renamed = relabeller(row.key, features, boxes, resized, owner, segments)
        return [
            segment
            if (found := renamed.get(segment.index)) is None or found[0] == segment.label
            else dataclasses.replace(segment, label=found[0], renamed=found[1:])
            for segment in segments
        ]

    def _dense_map(self, upstream: Upstream, row: ImageRow, size: tuple[int, int], image: Pixels | None) -> DenseMap:
        scores = self._scores(upstream, row, image)
        dense, vocabulary = self._dense, self._vocabulary
        found = label_map(
            scores, size, vocabulary, dense.logit_scale, dense.prob_threshold, dense.area_threshold, self._margin
        )
        if self._settings.closing is not None:
            found = found._replace(labels=closed(found.labels, self._settings.closing))
        presence = None
        if found.sure is not None:
            rule = self._presence
            sure = np.where(found.sure >= SURE, found.labels, np.int16(UNLABELLED))
            least = math.ceil(rule.alone_area * size[0] * size[1])
            presence = Presence(sure, found.sure == CLEAR, rule.share, rule.alone, least)

        def probabilities(box: Box, at: tuple[int, int]) -> Tensor:
            return vocabulary_probabilities(vocabulary, resampled(scores, box, size, at), dense.logit_scale)

        ignore = (0,) if vocabulary.has_background else ()
        return DenseMap(found.labels, found.confidence, found.lead, probabilities, ignore, presence)

    def _scores(self, upstream: Upstream, row: ImageRow, image: Pixels | None) -> Tensor | Stitched:
        """Return cosine similarities (Q, h, w) at the resized size, after post-processing."""
        values = upstream.values(row.row)
        resized = (values["resized_height"], values["resized_width"])
        boxes = window_boxes(*resized, self._window, self._stride)
        logits = self._logits(self._kept_of(upstream, row.row, boxes))
        others = self._vocabulary.left_out(row.extra.get("prompts"))
        if others:
            logits[:, others] = RULED_OUT
        stitched = Stitched(logits, boxes, resized)
        denoising, iterations = self._dense.prompt_denoising, self._settings.pamr
        vocabulary = self._vocabulary
        if not (denoising or iterations):
            return stitched
        scores = stitched.whole()
        if iterations and image is not None:
            small = cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR)
            pixels = torch.from_numpy(small).to(self._device).permute(2, 0, 1).float()
            if self._settings.pamr_at == "original":
                pixels, scores = enlarged(pixels, scores, image.shape[:2])
            scores = pamr(pixels, scores, iterations)
        if not denoising:
            return scores
        if not vocabulary.pooled:
            return denoise_prompts(scores[None], denoising)[0]
        denoised = denoise_prompts(scores[None, :-1], denoising)[0]  # the background cannot be absent
        return torch.cat([scores[:1], denoised[1:], scores[-1:]])

    def _kept_of(self, upstream: Upstream, row: int, boxes: Indices) -> Numbers:
        """Return the stored arrays of the windows: cosine similarities, or features."""
        top, left, bottom, right = boxes[0].tolist()
        windows, height, width = len(boxes), (bottom - top) // self._patch, (right - left) // self._patch
        grid = (None, None) if self._spliced else (height, width)
        if self._clip_spec is None:
            return upstream.array(row, "logits", (windows, self._vocabulary.channels, *grid))
        return upstream.array(row, "features", (windows, *grid, self._text.shape[1]))

    def _logits(self, of_windows: Numbers) -> Tensor:
        """Return cosine similarities of every window, (windows, Q, gh, gw), from what the dense stage has kept."""
        kept = torch.from_numpy(of_windows).to(self._device)
        if self._clip_spec is None:
            return kept
        cosine = cosines(kept.float(), self._text)
        vocabulary = self._vocabulary
        if not vocabulary.pooled:
            return cosine
        return pool_background(cosine, vocabulary.background_queries, self._dense.logit_scale)

    def _found(self, one: _Underway) -> Found:
        """Compute the mask candidates of the refine method."""
        settings = self._settings
        assert one.dense is not None
        if settings.method == "automatic":
            proposals = one.upstream["propose"].values(one.row.row)["proposals"]
            return voted(proposals, one.dense, Vote.from_setting(settings.vote))
        if self._sam is None:
            return NOTHING
        if isinstance(self._sam, Sam1) and settings.method == "trident-map":
            assert one.image is not None
            labels, prompts = refined_labels(self._sam, one.image, one.dense, settings)
            one.dense = dataclasses.replace(one.dense, labels=labels)
            return dataclasses.replace(NOTHING, prompts=prompts)
        see = functools.partial(self._embedding, self._sam, one.row.row, one.image, one.upstream)
        candidates = {"guided": guided, "trident": trident}.get(settings.method, prompted)
        return candidates(self._sam, see, one.dense, one.points, settings)

    def _embedding(
        self, sam: Sam, row: int, image: Pixels | None, upstream: Mapping[str, Upstream], box: Box
    ) -> Embedding:
        """Return SAM2's embedding of a part of an image: computed, or stored if the part is the whole image."""
        if not self._kept:
            assert image is not None
            x0, y0, x1, y1 = box
            [embedding] = sam.embed([image[y0:y1, x0:x1]])
            return embedding
        values = upstream["encode"].values(row)
        assert self._spec is not None
        arrays = {
            name: upstream["encode"].array(row, name, shape) for name, shape in embedding_shapes(self._spec).items()
        }
        return sam.embedding_of(arrays, (values["height"], values["width"]))
