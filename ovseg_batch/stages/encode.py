"""Encode: what SAM2's image encoder makes of every image, kept so that any later prompt is asked without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ovseg_batch.errors import RowError
from ovseg_batch.io.images import decode_ahead
from ovseg_batch.models import zoo
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.sam import Embedding, Sam
from ovseg_batch.settings import Config
from ovseg_batch.stages.base import Resources, Upstream, failed, precision_of, read_limits, split_on_failure
from ovseg_batch.types import ImageRow, RowResult

Array = np.ndarray[Any, Any]


class EncodeStage:
    """SAM2's embedding of every image: arrays `coarse`, `fine0` and `fine1`, (C, h, w) fp16 each."""

    name = "encode"
    version = 1
    needs: tuple[str, ...] = ()
    resources = Resources()
    arrays = True
    looks = True
    columns = pa.schema([pa.field("height", pa.int32()), pa.field("width", pa.int32())])

    def __init__(self, config: Config) -> None:
        self._config = config
        self._spec = zoo.resolve("sam", config.sam.model, config.sam.weights)

    def inputs(self) -> dict[str, Any]:
        run = self._config.run
        return {
            "sam": self._spec.identity(),
            "precision": precision_of(self._config, self._spec),
            "max_pixels": run.max_pixels,
            "max_file_bytes": run.max_file_bytes,
        }

    def disk(self, height: int, width: int) -> int:
        side, features = self._spec.window, self._spec.width
        coarse, finer, finest = ((side // stride) ** 2 for stride in (16, 8, 4))
        return 2 * (coarse * features + finer * features // 4 + finest * features // 8)

    def setup(self, device: str) -> None:
        self._sam = Sam.load(self._spec, resolve_device(device), precision_of(self._config, self._spec))

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        run = self._config.run
        for row, image in decode_ahead(rows, run.decode_threads, run.decode_bytes, read_limits(run)):
            if isinstance(image, RowError):
                yield failed(row, image.code, image.message)
                continue
            [seen] = split_on_failure(self._sam.embed, [image])
            yield failed(row, seen.code, seen.message) if isinstance(seen, RowError) else _kept(row, seen)


def _kept(row: ImageRow, embedding: Embedding) -> RowResult:
    height, width = embedding.size
    return RowResult(row.row, row.key, {"height": height, "width": width}, Sam.arrays_of(embedding))
