"""Dense prediction: CLIP with its last attention replaced (SCLIP), or TIPSv2, computes a score per patch and query.

Windows of one size are batched across the images of a shard. The stage keeps cosine similarities in fp16 per window, so
that another softmax, other synonyms or thresholds run no encoder again. Or it keeps the patch features themselves, and
any later vocabulary needs no encoder.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ovseg_batch.errors import RowError
from ovseg_batch.io.ahead import work_ahead
from ovseg_batch.io.images import decode, reduce, upright_size
from ovseg_batch.io.remote import shown
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.methods.class_scores import pool_background
from ovseg_batch.methods.labelling import resampled
from ovseg_batch.methods.maskclip import smooth_by_keys
from ovseg_batch.methods.views import mixed_logits
from ovseg_batch.methods.windows import window_boxes
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.dino import Dino
from ovseg_batch.models.encoders import blocks_of, load_encoder
from ovseg_batch.models.sam1 import Sam1
from ovseg_batch.models.trident import Trident
from ovseg_batch.stages.base import Stage, Upstream, done, failed, read_limits, ready
from ovseg_batch.stages.plans import DensePlan
from ovseg_batch.stages.regions import region_map
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.stages.text import word_features
from ovseg_batch.types import ImageRow, RowResult
from ovseg_batch.types.arrays import Halves, Indices, Pixels

DRAFT = 2  # least ratio of a reduced JPEG's longer side to that of the resized image


@dataclass(slots=True)
class _Pending:
    """An image whose windows are being computed.

    `regions` belong to each window where the attention is limited to regions, and `correlation` to each window where
    SAM2 computes it.
    """

    row: ImageRow
    size: tuple[int, int]  # original height, width
    resized: tuple[int, int]
    boxes: Indices
    windows: list[Pixels]
    kept: list[Halves | RowError | None]
    correlation: list[Tensor]
    regions: list[Tensor]

    @property
    def done(self) -> bool:
        return all(part is not None for part in self.kept)


class DenseStage(DensePlan, Stage):
    """Scores every window of an image with CLIP."""

    def setup(self, device: str) -> None:
        self._device = resolve_device(device)
        self._clip = load_encoder(self._spec, self._device, self._precision())
        self._batch = BatchSize(self._run.batch_size, "windows")
        self._variant = VARIANTS.get(self._settings.attention)
        self._dino: Dino | None = None
        if self._dino_spec is not None:
            self._dino = Dino.load(self._dino_spec, self._device, self._dino_precision())
        self._trident: Trident | None = None
        if self._sam_spec is not None and self._dino is not None:
            sam, own = Sam1.load(self._sam_spec, self._device, self._sam_precision()), self._settings.trident
            parts = (
                blocks_of(self._clip),
                self._dino,
                sam,
                self._window,
                self._stride,
                own.cosine,
                own.raise_negative,
                own.halves,
            )
            self._trident = Trident(*parts, BatchSize(self._run.batch_size, "windows"))
        if not self._features:
            self._text = word_features(self._words, self._clip, self._spec).to(self._device)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        run = self._run
        together = run.batch_size if self._trident is None else 1
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        waiting: list[_Pending] = []
        queue: dict[tuple[int, int], list[tuple[_Pending, int]]] = {}

        def cut(row: ImageRow, image: Image.Image) -> _Pending:
            size = upright_size(image, shown(row.path))
            if self._settings.draft:
                height, width = self._resized(*size)
                reduce(image, DRAFT * max(height, width))
            return self._cut(row, decode(image, shown(row.path)), size)

        for row, pending in work_ahead(todo, cut, run.decode_threads, run.decode_bytes, read_limits(run)):
            if isinstance(pending, RowError):
                yield failed(row, pending.code, pending.message)
                continue
            if self.needs:
                self._add_regions(pending, upstream["propose"])
            waiting.append(pending)
            for index, window in enumerate(pending.windows):
                queue.setdefault(window.shape[:2], []).append((pending, index))
            for shape in [s for s, jobs in queue.items() if len(jobs) >= together]:
                jobs = queue.pop(shape)
                whole = len(jobs) - len(jobs) % together
                self._see(jobs[:whole])
                if jobs[whole:]:
                    queue[shape] = jobs[whole:]
            if len(waiting) > together:
                shape = waiting[0].windows[0].shape[:2]
                self._see(queue.pop(shape, []))
            yield from _finished(waiting, "features" if self._features else "logits")
        for jobs in queue.values():
            self._see(jobs)
        yield from _finished(waiting, "features" if self._features else "logits")

    def _cut(self, row: ImageRow, image: Pixels, size: tuple[int, int]) -> _Pending:
        """Cut the windows of an image of (H, W) `size`, which may have been decoded smaller."""
        if self._trident is not None:
            return _Pending(row, size, size, np.array([[0, 0, *size]], np.int64), [image], [None], [], [])
        resized = self._resized(*size)
        if resized != image.shape[:2]:
            image = np.asarray(cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
        boxes = window_boxes(*resized, self._window, self._stride)
        windows = [image[y0:y1, x0:x1] for y0, x0, y1, x1 in boxes]
        return _Pending(row, size, resized, boxes, windows, [None] * len(windows), [], [])

    def _add_regions(self, pending: _Pending, propose: Upstream) -> None:
        """Add the regions of the proposals to each window, and SAM2's features where there is no DINO."""
        regions = region_map(propose.values(pending.row.row)["proposals"], pending.size, self._config)
        if pending.resized != pending.size:
            small = cv2.resize(regions, pending.resized[::-1], interpolation=cv2.INTER_NEAREST)
            regions = np.asarray(small, np.int32)
        for y0, x0, y1, x1 in pending.boxes.tolist():
            pending.regions.append(torch.from_numpy(regions[y0:y1, x0:x1].astype(np.int64)))
        if self._dino is not None:
            return
        kept = propose.array(pending.row.row, "features", (None, None, None))
        features = torch.from_numpy(kept).float().to(self._device)
        features = features - features.mean(dim=(1, 2), keepdim=True)
        for y0, x0, y1, x1 in pending.boxes.tolist():
            grid = ((y1 - y0) // self._clip.patch, (x1 - x0) // self._clip.patch)
            seen = resampled(features, (x0, y0, x1, y1), pending.resized, grid)
            pending.correlation.append(F.normalize(seen.permute(1, 2, 0), dim=-1))

    def _see(self, jobs: Sequence[tuple[_Pending, int]]) -> None:
        seen: list[Halves | RowError] = split_on_failure(self._seen, jobs, self._batch)
        for (pending, index), kept in zip(jobs, seen, strict=True):
            pending.kept[index] = kept

    @torch.inference_mode()
    def _seen(self, jobs: Sequence[tuple[_Pending, int]]) -> list[Halves]:
        """Compute the stored arrays of each window."""
        if self._trident is not None:
            return [self._spliced(self._trident, pending.windows[index]) for pending, index in jobs]
        windows = np.stack([pending.windows[index] for pending, index in jobs])
        batch = self._clip.normalise(torch.from_numpy(windows).to(self._device))
        dense = self._settings
        if self._variant is not None and dense.views == "itaclip":
            features_of = functools.partial(self._clip.patch_features, variant=self._variant, layers=dense.layers)
            return self._kept(mixed_logits(batch, features_of, self._text, dense.view_weight))
        keys = None
        if self._variant is None:
            features = self._region_features(jobs, windows, batch)
        elif dense.key_smoothing:
            features, keys = blocks_of(self._clip).features_and_keys(batch, self._variant, dense.layers)
        else:
            features = self._clip.patch_features(batch, self._variant, dense.layers)
        if self._features:
            return list(features.half().cpu().numpy())
        cosine = cosines(features, self._text)
        if keys is not None:
            cosine = smooth_by_keys(cosine, keys, dense.key_smoothing)
        return self._kept(cosine)

    def _spliced(self, trident: Trident, image: Pixels) -> Halves:
        """Compute the stored array of a whole image (H, W, 3): one window with the patches of SAM."""
        resized = self._resized(image.shape[0], image.shape[1])
        small = np.asarray(cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
        features = trident.features(image, small)[None]
        if self._features:
            return np.asarray(features[0].half().cpu().numpy(), np.float16)
        cosine = cosines(features, self._text)
        # a softmax does not change, and fp16 keeps more digits of the highest values
        return self._kept(cosine - cosine.amax(dim=1, keepdim=True))[0]

    def _region_features(self, jobs: Sequence[tuple[_Pending, int]], windows: Pixels, batch: Tensor) -> Tensor:
        """Return the features of CLIP's patches within their regions: (windows, gh, gw, D)."""
        if self._dino is None:
            correlation = [pending.correlation[index] for pending, index in jobs]
        else:
            images = self._dino.normalise(torch.from_numpy(windows).to(self._device))
            correlation = list(self._dino.query_key(images))
        clip = blocks_of(self._clip)
        features = [
            clip.region_features(batch[k : k + 1], seen, pending.regions[index], self._dino is not None)
            for k, ((pending, index), seen) in enumerate(zip(jobs, correlation, strict=True))
        ]
        return torch.stack(features)

    def _kept(self, cosine: Tensor) -> list[Halves]:
        """Return the channels of each window as they are stored."""
        if self._pools:
            queries = self._words.vocabulary.background_queries
            cosine = pool_background(cosine, queries, self._settings.logit_scale)
        return list(cosine.half().cpu().numpy())


def cosines(features: Tensor, text: Tensor) -> Tensor:
    """Patch features (N, gh, gw, D) against queries (Q, D), both L2-normalised: (N, Q, gh, gw)."""
    return torch.einsum("bhwd,qd->bqhw", features, text)


def _finished(waiting: list[_Pending], name: str) -> Iterator[RowResult]:
    """Yield the finished images at the front of the queue."""
    while waiting and waiting[0].done:
        pending = waiting.pop(0)
        errors = [part for part in pending.kept if isinstance(part, RowError)]
        if errors:
            yield failed(pending.row, errors[0].code, errors[0].message)
            continue
        yield done(
            pending.row,
            values={
                "height": pending.size[0],
                "width": pending.size[1],
                "resized_height": pending.resized[0],
                "resized_width": pending.resized[1],
                "windows": len(pending.boxes),
            },
            arrays={name: np.stack(pending.kept)},  # type: ignore[arg-type]
        )
