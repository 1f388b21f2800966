"""Draw images at random from a manifest, and read the sizes of images from their headers."""

from __future__ import annotations

import contextlib
import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ovseg_batch.errors import RowError
from ovseg_batch.io.atomic import atomic_path
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.manifest import ADDED, Manifest, ManifestWriter
from ovseg_batch.types import ImageRow


def draw(count: int, of: int, seed: int) -> list[int]:
    """Return `count` different numbers below `of`, sorted. Every subset of that size is equally probable.

    The memory grows with `count` alone. The same arguments give the same numbers.
    """
    return sorted(random.Random(seed).sample(range(of), min(count, of)))


def write_sample(source: Path, out: Path, count: int, seed: int, shards: int) -> int:
    """Write a manifest of images that are drawn at random from another manifest.

    Args:
        source: the manifest of the whole list.
        out: replaced atomically.
        count: images to draw; all where the list has fewer.
        seed: decides which.
        shards: number of shards to divide them into, at most one per image.

    Returns:
        The number of images drawn.
    """
    manifest = Manifest.open(source)
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow.remove_metadata()
    for name in (name for name in ADDED if name in schema.names):
        schema = schema.remove(schema.get_field_index(name))
    drawn = draw(count, manifest.rows, seed)
    with atomic_path(out) as temporary:
        writer = ManifestWriter(temporary, schema, math.ceil(len(drawn) / shards))
        with contextlib.closing(writer):
            for line in _lines(manifest, drawn):
                writer.add({name: line[name] for name in schema.names if name != "row"})
    return len(drawn)


def sample_rows(manifest: Manifest, count: int, seed: int) -> Iterator[ImageRow]:
    """Yield images that are drawn at random. Only their shards are read, one at a time."""
    for shard, places in _by_shard(manifest, draw(count, manifest.rows, seed)):
        rows = manifest.read_shard(shard)
        yield from (rows[place] for place in places)


def read_size(row: ImageRow, limits: Limits) -> tuple[int, int] | None:
    """Return (height, width) of an image: from the manifest, otherwise from the header of its file.

    Returns:
        None if the file cannot be read. Images behind URLs are not fetched.
    """
    from ovseg_batch.io.images import open_image  # imports Pillow

    if row.width and row.height:
        return row.height, row.width
    with contextlib.suppress(RowError), open_image(row.path, replace(limits, remote=None)) as image:
        return image.height, image.width
    return None


def _lines(manifest: Manifest, ordinals: Sequence[int]) -> Iterator[dict[str, Any]]:
    for shard, places in _by_shard(manifest, ordinals):
        lines = manifest.read_lines(shard)
        yield from (lines[place] for place in places)


def _by_shard(manifest: Manifest, ordinals: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Yield the shards of images, and their places in the shard. Removed rows are not counted.

    Args:
        ordinals: numbers of images in the order of the manifest, from 0, sorted.
    """
    starts = [0, *accumulate(map(manifest.rows_of, range(manifest.shards)))]
    for shard, found in groupby(ordinals, lambda ordinal: bisect_right(starts, ordinal) - 1):
        yield shard, [ordinal - starts[shard] for ordinal in found]
