"""Write a small manifest for a trial run, with images that are spread over a large manifest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.io.manifest import REVISION, ManifestWriter

WARM_UP = 2  # images; the first batch loads kernels and fills caches, and is not measured
WARM_UP_SHARD, TIMED_SHARD = 0, 1


@dataclass(frozen=True, slots=True)
class Sample:
    """The numbers of images in the two shards of a sample and in the whole list."""

    warm_up: int
    timed: int
    listed: int


def write_sample(listed: Path, out: Path, images: int) -> Sample:
    """Write a manifest of two shards: images for the warm-up, and images to measure.

    Args:
        listed: the manifest of all images.
        out: the file to write.
        images: number of images to measure, at most that of the list. If the list has no other images, the same ones
            are used for the warm-up, under other keys.
    """
    with pq.ParquetFile(listed) as file:
        total = file.metadata.num_rows
        warm, timed = _positions(total, images)
        lines = _read(file, sorted({*warm, *timed}))
        schema = pa.schema([field for field in file.schema_arrow if field.name != REVISION])
    writer = ManifestWriter(out, schema, max(len(warm), len(timed)) + 1)  # large enough that no shard becomes full
    for position in warm:
        line = lines[position]
        marked = {name: f"warm-up/{line[name]}" for name in ("key", "file_name")}
        writer.add({**line, **marked})
    writer.end_shard()
    for position in timed:
        writer.add(dict(lines[position]))
    writer.close()
    return Sample(len(warm), len(timed), total)


def _positions(total: int, images: int) -> tuple[list[int], list[int]]:
    """Return the positions of the images for the warm-up and of those to measure, spread over the list."""
    chosen = spread(total, images + WARM_UP)
    if len(chosen) < images + WARM_UP:
        return chosen[:WARM_UP], chosen[:images]
    warm = [chosen[k] for k in spread(len(chosen), WARM_UP + 2)[1:-1]]
    return warm, [place for place in chosen if place not in warm][:images]


def spread(total: int, count: int) -> list[int]:
    """Return at most `count` different positions of 0 … total - 1, evenly spread, including the first and the last."""
    if count >= total:
        return list(range(total))
    return [round(k * (total - 1) / max(count - 1, 1)) for k in range(count)]


def _read(file: pq.ParquetFile, positions: Sequence[int]) -> dict[int, Mapping[str, Any]]:
    """Return the lines at some positions, without row numbers. Only shards that hold them are read."""
    groups = file.metadata.num_row_groups
    ends = list(accumulate(file.metadata.row_group(group).num_rows for group in range(groups)))
    found: dict[int, Mapping[str, Any]] = {}
    kept: tuple[int, list[dict[str, Any]]] = (-1, [])
    for position in positions:
        group = bisect_right(ends, position)
        if kept[0] != group:
            kept = group, file.read_row_group(group).to_pylist()
        line = kept[1][position - (ends[group - 1] if group else 0)]
        found[position] = {name: value for name, value in line.items() if name not in ("row", REVISION)}
    return found
