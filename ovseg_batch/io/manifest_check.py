"""Check a manifest that another command wrote, before a run uses its rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovseg_batch.errors import UsageError
from ovseg_batch.io.hashing import key_hash
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.io.row_groups import REQUIRED


def check_rows(path: Path) -> None:
    """Check the rows of a manifest, one shard at a time. The check holds 8 bytes a row.

    Raises:
        UsageError: the file is not a manifest or is damaged, a row number repeats or is outside its shard, or two
            images have one key.
    """
    manifest = Manifest.open(path)
    keys = np.empty(manifest.rows, np.uint64)
    start = 0
    for shard in range(manifest.shards):
        lines = manifest.read_lines(shard, REQUIRED)
        if not _are_in_place([line["row"] for line in lines], shard, manifest.shard_rows):
            raise _refusal(path, f"the row numbers of shard {shard} are not in order or not the shard's own")
        keys[start : start + len(lines)] = [key_hash(line["key"]) for line in lines]
        start += len(lines)
    keys.sort()
    if (keys[1:] == keys[:-1]).any():
        raise _refusal(path, "two of its rows have the same key")


def _are_in_place(rows: Sequence[int], shard: int, shard_rows: int) -> bool:
    """Return whether the row numbers of a shard increase and lie within the shard."""
    bounds = [shard * shard_rows - 1, *rows, (shard + 1) * shard_rows]
    return all(one < other for one, other in itertools.pairwise(bounds))


def _refusal(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is damaged or was changed: {why}. Make it again with `ovseg-batch manifest`.")
