"""Pair the images of two runs, and the masks of an image in both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ovseg_batch.errors import UsageError
from ovseg_batch.io import rle
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.types import Annotation, FinishedImage
from ovseg_batch.types.arrays import Indices
from ovseg_batch.units import counted
from ovseg_batch.workdir.results import Results

SAME_PLACE = 0.5  # least IoU of masks at the same place
SHARDS_KEPT = 2  # shards of a run in memory

Image = FinishedImage[Annotation]


@dataclass(frozen=True, slots=True)
class ImagePairs:
    """The images that two runs list.

    Attributes:
        rows: (N, 2) manifest rows in A and B, in the order in which the fewest shards are read.
        only_a, only_b: images that only one of them lists.
    """

    rows: Indices
    only_a: int
    only_b: int


def pair_images(a: Results, b: Results) -> ImagePairs:
    """Pair images by key, and then by file name where it is unique.

    Raises:
        UsageError: the runs have no image in common.
    """
    keys_a, keys_b = ([*one.manifest.read_column("key")] for one in (a, b))
    place_b = {key: place for place, key in enumerate(keys_b)}
    pairs = [(place, place_b[key]) for place, key in enumerate(keys_a) if key in place_b]
    if len(pairs) < len(keys_a) and len(pairs) < len(keys_b):
        pairs += _by_name(a.manifest, b.manifest, {one for one, _ in pairs}, {other for _, other in pairs})
    if not pairs:
        raise UsageError(
            f"{a.workdir.root} and {b.workdir.root} have no image in common: {counted(len(keys_a), 'image')} like "
            f"{keys_a[0]!r} and {counted(len(keys_b), 'image')} like {keys_b[0]!r}. Compare runs over the same images."
        )
    rows_a, rows_b = (np.fromiter(one.manifest.read_column("row"), np.int64) for one in (a, b))
    places = np.array(pairs)
    rows = np.stack([rows_a[places[:, 0]], rows_b[places[:, 1]]], axis=1)
    order = np.lexsort(
        (rows[:, 1], rows[:, 0], rows[:, 1] // b.manifest.shard_rows, rows[:, 0] // a.manifest.shard_rows)
    )
    return ImagePairs(rows[order], len(keys_a) - len(pairs), len(keys_b) - len(pairs))


def _by_name(a: Manifest, b: Manifest, used_a: set[int], used_b: set[int]) -> list[tuple[int, int]]:
    """Return the pairs of the unused places whose file names are equal and unique."""
    found: list[dict[str, int]] = []
    for manifest, used in ((a, used_a), (b, used_b)):
        names: dict[str, int] = {}
        for place, name in enumerate(manifest.read_column("file_name")):
            if place not in used:
                names[name] = -1 if name in names else place
        found.append(names)
    one, other = found
    return [(place, other[name]) for name, place in one.items() if place >= 0 and other.get(name, -1) >= 0]


def finished_pairs(
    a: Results, b: Results, pairs: ImagePairs, rename: Callable[[str], str]
) -> Iterator[tuple[Image, Image] | None]:
    """Yield the images of each pair in A and B, or None where one of them is not finished.

    Args:
        rename: label of B → label in the comparison.
    """
    read_a, read_b = _reader(a, lambda label: label), _reader(b, rename)
    for row_a, row_b in pairs.rows.tolist():
        one, other = read_a(row_a), read_b(row_b)
        yield None if one is None or other is None else (one, other)


def _reader(results: Results, rename: Callable[[str], str]) -> Callable[[int], Image | None]:
    @functools.lru_cache(maxsize=SHARDS_KEPT)
    def shard(number: int) -> dict[int, Image]:
        if results.masks.read_commit(number) is None:
            return {}
        return {image.row.row: image for image in results.shard(number)}

    def read(row: int) -> Image | None:
        image = shard(results.manifest.shard_of(row)).get(row)
        return (
            None
            if image is None
            else replace(
                image, annotations=tuple(replace(one, category=rename(one.category)) for one in image.annotations)
            )
        )

    return read


@dataclass(frozen=True, slots=True)
class MatchedMasks:
    """The masks of an image in two runs, as indices of their annotations.

    Attributes:
        same: (mask of A, mask of B, IoU) of masks with one label.
        changed: (mask of A, mask of B) at the same place with different labels.
        only_a, only_b: masks without a partner.
    """

    same: list[tuple[int, int, float]]
    changed: list[tuple[int, int]]
    only_a: list[int]
    only_b: list[int]


def match_masks(a: Sequence[Annotation], b: Sequence[Annotation], size: tuple[int, int]) -> MatchedMasks:
    """Match masks greedily by IoU, the highest first, from `SAME_PLACE` on: first within labels, then across them."""
    left_a, left_b = set(range(len(a))), set(range(len(b)))
    same: list[tuple[int, int, float]] = []
    for label in sorted({one.category for one in a} & {one.category for one in b}):
        members_a = [k for k, one in enumerate(a) if one.category == label]
        members_b = [k for k, one in enumerate(b) if one.category == label]
        same += _greedy(a, b, members_a, members_b, size)
    left_a -= {one for one, _, _ in same}
    left_b -= {other for _, other, _ in same}
    changed = [(one, other) for one, other, _ in _greedy(a, b, sorted(left_a), sorted(left_b), size)]
    left_a -= {one for one, _ in changed}
    left_b -= {other for _, other in changed}
    return MatchedMasks(same, changed, sorted(left_a), sorted(left_b))


def _greedy(
    a: Sequence[Annotation],
    b: Sequence[Annotation],
    members_a: Sequence[int],
    members_b: Sequence[int],
    size: tuple[int, int],
) -> list[tuple[int, int, float]]:
    iou, _ = rle.overlaps_with([a[k].rle for k in members_a], [b[k].rle for k in members_b], *size)
    found, used_a, used_b = [], set[int](), set[int]()
    rows, columns = np.nonzero(iou >= SAME_PLACE)
    for place in np.argsort(-iou[rows, columns], kind="stable").tolist():
        one, other = int(rows[place]), int(columns[place])
        if one not in used_a and other not in used_b:
            used_a.add(one)
            used_b.add(other)
            found.append((members_a[one], members_b[other], float(iou[one, other])))
    return found
