"""Build a memory bank from a run: the features of its masks' regions, without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.io import rle
from ovseg_batch.io.bank_file import FORMAT, write_bank
from ovseg_batch.io.marks import check_replaceable, has_mark
from ovseg_batch.io.records import parse_json
from ovseg_batch.methods.banking import region_features
from ovseg_batch.methods.windows import window_boxes
from ovseg_batch.stages.refine.memory_bank import made_of
from ovseg_batch.stages.upstream import CommittedShard
from ovseg_batch.types import Annotation, FinishedImage, ImageRow, MaskSummary
from ovseg_batch.types.arrays import Floats, Indices, Numbers
from ovseg_batch.wording import setting
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import StageStore, Workdir


def build_bank(workdir: Workdir, out: Path, limit: int) -> int:
    """Write a memory bank of the committed shards. Return its number of regions.

    Args:
        workdir: a run that has stored its features.
        out: the file, replaced atomically.
        limit: approximate maximum of regions. If there are more, a random sample is used.

    Raises:
        UsageError: the run has no stored features or no masks, or `out` is a file of another kind.
        OvsegError: the record of the dense stage is damaged.
    """
    check_replaceable(out, lambda file: has_mark(file, FORMAT))
    results = Results.open(workdir)
    dense = next((store for store in results.stores if store.stage == "dense"), None)
    inputs = {} if dense is None else _settings(dense)
    if dense is None or inputs.get("cache") != "features":
        raise UsageError(
            f"{workdir.root} has no stored features, which a bank needs. Run it again with "
            f"{setting('dense.cache', 'features')}."
        )
    shards = [commit.shard for commit in results.masks.commits()]
    total = sum(len(image.annotations) for shard in shards for image in results.shard(shard, MaskSummary))
    share = min(1.0, limit / max(total, 1))
    width = next((part[1].shape[1] for part in _parts(results, dense, inputs, shards, 1.0, None)), None)
    if width is None:
        raise UsageError(f"{workdir.root} has no masks, which a bank needs. Run it with labels that the images show.")
    return write_bank(out, width, _parts(results, dense, inputs, shards, share, width), made_of(inputs))


def _settings(dense: StageStore) -> dict[str, Any]:
    """Return the settings in the record of a dense stage."""
    record = dense.folder / "stage.json"
    try:
        return dict(parse_json(record.read_bytes())["inputs"]["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise OvsegError(f"{record} is damaged. Delete it; the next run in this workdir writes it again.") from None


def _parts(
    results: Results, dense: StageStore, inputs: dict[str, Any], shards: list[int], share: float, width: int | None
) -> Iterator[tuple[list[str], Floats]]:
    """Yield (image key of each region, features (R, width)) of the sampled regions of every image."""
    for shard in shards:
        with CommittedShard(dense, shard) as kept:
            for image in results.shard(shard):
                row = image.row
                seen = kept.values(row.row)
                resized = (seen["resized_height"], seen["resized_width"])
                boxes = window_boxes(*resized, inputs["window"], inputs["stride"])
                chosen = [k for k in range(len(image.annotations)) if _drawn(row, k) < share]
                windows = kept.array(row.row, "features", (len(boxes), None, None, width))
                features = _of_image(windows, boxes, resized, image)[chosen]
                features = features[np.linalg.norm(features, axis=1) > 0]
                if len(features):
                    yield [row.key] * len(features), features


def _of_image(features: Numbers, boxes: Indices, resized: tuple[int, int], image: FinishedImage[Annotation]) -> Floats:
    owner = np.zeros(image.size, np.int32)
    for number, one in enumerate(image.annotations, start=1):
        rle.decode_placed(one.rle, *image.size).paint(owner, number)
    small = np.asarray(cv2.resize(owner, resized[::-1], interpolation=cv2.INTER_NEAREST), np.int32)
    return region_features(features, boxes, small, len(image.annotations))


def _drawn(row: ImageRow, region: int) -> float:
    """Return a number in [0, 1) that depends only on the region."""
    digest = hashlib.blake2b(f"{row.key}\0{region}".encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
