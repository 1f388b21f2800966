"""Samples of a manifest: uniform, reproducible, and complete rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg_batch.io.limits import Limits
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.sampled import draw, read_size, sample_rows, write_sample
from ovseg_batch.io.updating import update_manifest
from ovseg_batch.types import ImageRow

LIMITS = Limits(10**8, 10**8)


def listed(folder: Path, count: int, shard_rows: int = 4) -> Path:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for k in range(count):
        Image.new("RGB", (10 + k, 20)).save(images / f"{k:03}.png")
    out = folder / f"{count}.parquet"
    build_manifest([str(images)], out, shard_rows)
    return out


def test_a_draw_is_sorted_reproducible_and_without_repetition() -> None:
    drawn = draw(24, 10_000_000, seed=3)
    assert drawn == sorted(set(drawn)) and len(drawn) == 24 and drawn[0] >= 0 and drawn[-1] < 10_000_000
    assert drawn == draw(24, 10_000_000, seed=3) != draw(24, 10_000_000, seed=4)
    assert draw(24, 5, seed=0) == [0, 1, 2, 3, 4]


def test_every_image_is_drawn_with_the_same_probability() -> None:
    counts = Counter(k for seed in range(4_000) for k in draw(5, 20, seed))
    expected = 4_000 * 5 / 20
    chi_square = sum((counts[k] - expected) ** 2 / expected for k in range(20))
    assert chi_square < 43.8  # 0.999 quantile of chi-square with 19 degrees of freedom


def test_a_sample_has_the_rows_of_the_list_in_shards_of_their_own(tmp_path: Path) -> None:
    whole = listed(tmp_path, 30)
    assert write_sample(whole, tmp_path / "sample.parquet", 20, seed=1, shards=8) == 20
    sample = Manifest.open(tmp_path / "sample.parquet")
    assert (sample.rows, sample.shards, sample.shard_rows) == (20, 7, 3)
    rows = [row for shard in range(sample.shards) for row in sample.read_shard(shard)]
    assert [row.row for row in rows] == list(range(20))
    names = [row.key for row in rows]
    assert names == [f"{k:03}.png" for k in draw(20, 30, seed=1)]
    assert all(Path(row.path).exists() and row.bytes for row in rows)
    again = tmp_path / "again.parquet"
    write_sample(whole, again, 20, seed=1, shards=8)
    assert again.read_bytes() == (tmp_path / "sample.parquet").read_bytes()


def test_removed_rows_are_not_drawn(tmp_path: Path) -> None:
    whole = listed(tmp_path, 10)
    for k in (0, 5, 6):
        (tmp_path / "images" / f"{k:03}.png").unlink()
    fresh = tmp_path / "fresh.parquet"
    build_manifest([str(tmp_path / "images")], fresh, 4)
    update_manifest(whole, fresh)
    write_sample(whole, tmp_path / "sample.parquet", 24, seed=0, shards=8)
    sample = Manifest.open(tmp_path / "sample.parquet")
    keys = [row.key for shard in range(sample.shards) for row in sample.read_shard(shard)]
    assert keys == [f"{k:03}.png" for k in range(10) if k not in (0, 5, 6)]


def test_sizes_come_from_the_list_or_from_headers(tmp_path: Path) -> None:
    manifest = Manifest.open(listed(tmp_path, 9))
    rows = list(sample_rows(manifest, 5, seed=2))
    assert [read_size(row, LIMITS) for row in rows] == [(20, 10 + int(row.key[:3])) for row in rows]
    assert read_size(ImageRow(0, "a", "a", "missing.png", width=7, height=5), LIMITS) == (5, 7)
    assert read_size(ImageRow(0, "a", "a", str(tmp_path / "missing.png")), LIMITS) is None
    assert np.all([row.row < 12 for row in rows])
