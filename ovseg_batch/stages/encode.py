"""Encode: keep SAM2's embedding of every image, so that later prompts need no image encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ovseg_batch.errors import RowError
from ovseg_batch.io.ahead import decode_ahead
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.sam import Embedding, Sam
from ovseg_batch.stages.base import Stage, Upstream, done, failed, read_limits
from ovseg_batch.stages.plans import EncodePlan
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.types import ImageRow, RowResult


class EncodeStage(EncodePlan, Stage):
    """Embeds every image with SAM2."""

    def setup(self, device: str) -> None:
        self._sam = Sam.load(self._spec, resolve_device(device), self._precision())

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        run = self._run
        for row, image in decode_ahead(rows, run.decode_threads, run.decode_bytes, read_limits(run)):
            if isinstance(image, RowError):
                yield failed(row, image.code, image.message)
                continue
            [seen] = split_on_failure(self._sam.embed, [image])
            yield failed(row, seen.code, seen.message) if isinstance(seen, RowError) else _kept(row, seen)


def _kept(row: ImageRow, embedding: Embedding) -> RowResult:
    height, width = embedding.size
    return done(row, {"height": height, "width": width}, Sam.arrays_of(embedding))
