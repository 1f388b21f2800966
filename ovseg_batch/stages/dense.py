"""Dense predict: CLIP with its last attention replaced gives every patch a score per query (SCLIP).

Windows of one size are batched across the images of a shard. What is kept are cosine similarities per window, fp16;
softmax, synonyms and thresholds are applied when they are read, so changing those re-runs no encoder.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.errors import RowError
from ovseg_batch.io import rle
from ovseg_batch.io.images import decode_ahead
from ovseg_batch.methods.attention import REGION_LIMITED, VARIANTS
from ovseg_batch.methods.labelling import resampled
from ovseg_batch.methods.maskclip import smooth_by_keys
from ovseg_batch.methods.proposals import paint_regions
from ovseg_batch.methods.views import mixed_logits
from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.methods.windows import resized_size, window_boxes
from ovseg_batch.models import zoo
from ovseg_batch.models.clip import DenseClip
from ovseg_batch.models.device import resolve_device
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import Resources, Upstream, failed, precision_of, read_limits, ready, split_on_failure
from ovseg_batch.stages.text import text_features
from ovseg_batch.types import ImageRow, RowResult

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class _Pending:
    """An image whose windows are on their way through the model.

    `correlation` and `regions` belong to each window where the attention is limited to regions.
    """

    row: ImageRow
    size: tuple[int, int]  # original height, width
    resized: tuple[int, int]
    boxes: Array
    windows: list[Array]
    logits: list[Array | RowError | None]
    correlation: list[Tensor]
    regions: list[Tensor]

    @property
    def done(self) -> bool:
        return all(part is not None for part in self.logits)


def window_and_stride(config: Config) -> tuple[int, int]:
    """In pixels: as asked for, or the model's own image size, and a share of it."""
    window = config.dense.window or zoo.resolve("clip", config.clip.model, config.clip.weights).window
    stride = config.dense.stride
    return window, stride if isinstance(stride, int) else max(1, round(stride * window))


class DenseStage:
    """Per-window cosine logits of every image: arrays `logits` (windows, Q, gh, gw) fp16."""

    name = "dense"
    version = 3
    needs: tuple[str, ...]
    resources = Resources()
    arrays = True
    columns = pa.schema(
        [
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("resized_height", pa.int32()),
            pa.field("resized_width", pa.int32()),
            pa.field("windows", pa.int32()),
        ]
    )

    def __init__(
        self, config: Config, vocabulary: Vocabulary, templates: Sequence[str], definitions: Mapping[str, str]
    ) -> None:
        self._config = config
        self._vocabulary = vocabulary
        names = [vocabulary.names[index] for index in vocabulary.query_class]
        self._definitions = [definitions.get(name, "") for name in names]  # of each query's class
        self._templates = tuple(templates)
        self._spec = zoo.resolve("clip", config.clip.model, config.clip.weights)
        dense = config.dense
        self.needs = ("propose",) if dense.attention == REGION_LIMITED else ()
        self._window, self._stride = window_and_stride(config)
        self._short_side = dense.short_side or self._spec.short_side

    def inputs(self) -> dict[str, Any]:
        dense = self._config.dense
        return {
            "clip": self._spec.identity(),
            "precision": precision_of(self._config.run, self._spec),
            "attention": dense.attention,
            "layers": list(dense.layers),
            "window": self._window,
            "stride": self._stride,
            "short_side": self._short_side,
            "long_side": dense.long_side,
            "templates": list(self._templates),
            "queries": list(self._vocabulary.queries),
            "definitions": self._definitions,
            "definition_weight": dense.definition_weight if any(self._definitions) else None,
            "views": dense.views,
            "key_smoothing": dense.key_smoothing,
            "max_pixels": self._config.run.max_pixels,
            "max_file_bytes": self._config.run.max_file_bytes,
        }

    def setup(self, device: str) -> None:
        self._device = resolve_device(device)
        self._clip = DenseClip.load(self._spec, self._device, precision_of(self._config.run, self._spec))
        self._variant = VARIANTS.get(self._config.dense.attention)
        self._text = self._queries().to(self._device)

    def _queries(self) -> Tensor:
        """(Q, D): one feature a query, with its class's definition mixed in where there is one."""
        words = text_features(self._clip, self._spec, self._vocabulary.queries, self._templates)
        defined = [k for k, definition in enumerate(self._definitions) if definition]
        if defined:
            told = text_features(self._clip, self._spec, [self._definitions[k] for k in defined], self._templates)
            words[defined] = torch.lerp(words[defined], told, self._config.dense.definition_weight)
        return words

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        run = self._config.run
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        waiting: list[_Pending] = []
        queue: dict[tuple[int, int], list[tuple[_Pending, int]]] = {}
        for row, image in decode_ahead(todo, run.decode_threads, run.decode_bytes, read_limits(run)):
            if isinstance(image, RowError):
                yield failed(row, image.code, image.message)
                continue
            pending = self._cut(row, image)
            if self.needs:
                self._add_regions(pending, upstream["propose"])
            waiting.append(pending)
            for index, window in enumerate(pending.windows):
                queue.setdefault(window.shape[:2], []).append((pending, index))
            for shape in [s for s, jobs in queue.items() if len(jobs) >= run.batch_size]:
                jobs = queue.pop(shape)
                whole = len(jobs) - len(jobs) % run.batch_size
                self._score(jobs[:whole])
                if jobs[whole:]:
                    queue[shape] = jobs[whole:]
            if len(waiting) > run.batch_size:
                shape = waiting[0].windows[0].shape[:2]
                self._score(queue.pop(shape, []))
            yield from _finished(waiting)
        for jobs in queue.values():
            self._score(jobs)
        yield from _finished(waiting)

    def _cut(self, row: ImageRow, image: Array) -> _Pending:
        size = (image.shape[0], image.shape[1])
        short_side = self._short_side if isinstance(self._short_side, int) else None
        resized = resized_size(*size, short_side, self._config.dense.long_side, self._clip.patch)
        if resized != size:
            image = cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR)
        boxes = window_boxes(*resized, self._window, self._stride)
        windows = [image[y0:y1, x0:x1] for y0, x0, y1, x1 in boxes]
        return _Pending(row, size, resized, boxes, windows, [None] * len(windows), [], [])

    def _add_regions(self, pending: _Pending, propose: Upstream) -> None:
        """What the proposals of the image say of each window: SAM2's features at the patches, and the regions."""
        features = torch.from_numpy(propose.array(pending.row.row, "features")).float().to(self._device)
        features = features - features.mean(dim=(1, 2), keepdim=True)
        largest_first = sorted(propose.values(pending.row.row)["proposals"], key=lambda p: -p["area"])
        masks = (rle.decode(proposal["rle"], *pending.size) for proposal in largest_first)
        regions = paint_regions(masks, pending.size)
        if pending.resized != pending.size:
            regions = cv2.resize(regions, pending.resized[::-1], interpolation=cv2.INTER_NEAREST)
        for y0, x0, y1, x1 in pending.boxes.tolist():
            grid = ((y1 - y0) // self._clip.patch, (x1 - x0) // self._clip.patch)
            seen = resampled(features, (x0, y0, x1, y1), pending.resized, grid)
            pending.correlation.append(F.normalize(seen.permute(1, 2, 0), dim=-1))
            pending.regions.append(torch.from_numpy(regions[y0:y1, x0:x1].astype(np.int64)).to(self._device))

    def _score(self, jobs: Sequence[tuple[_Pending, int]]) -> None:
        for start in range(0, len(jobs), self._config.run.batch_size):
            batch = jobs[start : start + self._config.run.batch_size]
            scored: list[Array | RowError] = split_on_failure(self._logits, batch)
            for (pending, index), logits in zip(batch, scored, strict=True):
                pending.logits[index] = logits

    @torch.inference_mode()
    def _logits(self, jobs: Sequence[tuple[_Pending, int]]) -> list[Array]:
        windows = np.stack([pending.windows[index] for pending, index in jobs])
        batch = self._clip.normalise(torch.from_numpy(windows).to(self._device))
        dense = self._config.dense
        if self._variant is None:
            features = torch.stack(
                [
                    self._clip.region_features(batch[k : k + 1], pending.correlation[index], pending.regions[index])
                    for k, (pending, index) in enumerate(jobs)
                ]
            )
            cosine = torch.einsum("bhwd,qd->bqhw", features, self._text)
        elif dense.key_smoothing:
            features, keys = self._clip.features_and_keys(batch, self._variant, dense.layers)
            cosine = torch.einsum("bhwd,qd->bqhw", features, self._text)
            cosine = smooth_by_keys(cosine, keys, dense.key_smoothing)
        else:
            variant = self._variant
            features_of = functools.partial(self._clip.patch_features, variant=variant, layers=dense.layers)
            if dense.views == "itaclip":
                cosine = mixed_logits(batch, features_of, self._text)
            else:
                cosine = torch.einsum("bhwd,qd->bqhw", features_of(batch), self._text)
        return list(cosine.half().cpu().numpy())


def _finished(waiting: list[_Pending]) -> Iterator[RowResult]:
    """Take finished images off the front of the line."""
    while waiting and waiting[0].done:
        pending = waiting.pop(0)
        errors = [part for part in pending.logits if isinstance(part, RowError)]
        if errors:
            yield failed(pending.row, errors[0].code, errors[0].message)
            continue
        yield RowResult(
            pending.row.row,
            pending.row.key,
            values={
                "height": pending.size[0],
                "width": pending.size[1],
                "resized_height": pending.resized[0],
                "resized_width": pending.resized[1],
                "windows": len(pending.boxes),
            },
            arrays={"logits": np.stack(pending.logits)},  # type: ignore[arg-type]
        )
