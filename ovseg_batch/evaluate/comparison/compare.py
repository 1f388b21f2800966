"""Compare two runs over the same images: their settings, labels, masks and pixels, and the images that differ most."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from ovseg_batch.evaluate.comparison.pairing import Image, MatchedMasks, finished_pairs, match_masks, pair_images
from ovseg_batch.evaluate.truth.matching import simple
from ovseg_batch.io import rle
from ovseg_batch.types import painting_order
from ovseg_batch.types.arrays import ClassMap, Indices
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

LABELS = "labels"  # key of the settings
NO_MASK = "no mask"  # of pixels without a label
SHOWN = 24  # images that a comparison lists by default
CHANGES = 3  # changes of label that an image lists


@dataclass(slots=True)
class LabelChange:
    """A label in both runs.

    Attributes:
        masks, pixels: numbers in A and B; pixels of the label where every pixel has one label.
        matched: masks at the same place in both.
        overlap: summed IoU of these.
        changed: masks of A and of B at the same place as a mask of another label.
        only: masks of A and of B without a partner.
    """

    masks: list[int] = field(default_factory=lambda: [0, 0])
    pixels: list[int] = field(default_factory=lambda: [0, 0])
    matched: int = 0
    overlap: float = 0.0
    changed: list[int] = field(default_factory=lambda: [0, 0])
    only: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def iou(self) -> float | None:
        """Mean IoU of the matched masks, in [0, 1]."""
        return self.overlap / self.matched if self.matched else None


@dataclass(frozen=True, slots=True, order=True)
class ImageChange:
    """An image that differs.

    Attributes:
        share: share of its pixels whose label differs, in [0, 1].
        unmatched: masks of both runs without a partner of their label.
        rows: manifest rows in A and B.
        changes: (label in A, label in B, share of the pixels) of the largest changes.
    """

    share: float
    unmatched: int
    rows: tuple[int, int]
    file_name: str
    changes: tuple[tuple[str, str, float], ...]


@dataclass(slots=True)
class Comparison:
    """Two runs, A and B.

    Attributes:
        labels: labels of A, and those that only B has.
        only_labels: labels that only A and only B have.
        settings: key → value in A and in B; None where a run has no such key.
        images: images that are finished in both.
        only: images that only A and only B list.
        unfinished: images that both list, and that are not finished in both.
        resized: images that have another size in B.
        equal: images whose masks are equal in both.
        by_label: label → its counts.
        moved: (label in A, label in B) → masks at the same place.
        pixels: (L + 1, L + 1) int64, pixels by label in A and in B. The last are pixels without a mask.
        most: the images that differ most, the largest difference first.
    """

    labels: tuple[str, ...]
    only_labels: tuple[tuple[str, ...], tuple[str, ...]]
    settings: dict[str, tuple[Any, Any]]
    only: tuple[int, int]
    pixels: Indices
    images: int = 0
    unfinished: int = 0
    resized: int = 0
    equal: int = 0
    by_label: dict[str, LabelChange] = field(default_factory=dict)
    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    most: list[ImageChange] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of all pixels whose label differs, in [0, 1]."""
        return 1 - float(np.diag(self.pixels).sum() / max(self.pixels.sum(), 1))

    def flows(self, count: int) -> list[tuple[str, str, int]]:
        """Return (label in A, label in B, pixels) of the largest changes of label."""
        changed = self.pixels.copy()
        np.fill_diagonal(changed, 0)
        names = (*self.labels, NO_MASK)
        best = np.argsort(-changed, axis=None, kind="stable")[:count]
        places = [divmod(int(place), len(names)) for place in best]
        return [(names[i], names[j], int(changed[i, j])) for i, j in places if changed[i, j]]


def compare_runs(
    a: Workdir, b: Workdir, shown: int = SHOWN, advance: Callable[[int], object] = lambda images: None
) -> Comparison:
    """Compare two runs shard by shard. Only the masks of a few shards are in memory.

    Args:
        shown: most images to list.
        advance: called with the number of compared images.

    Raises:
        UsageError: a folder is no workdir, or the runs have no image in common.
    """
    runs = Results.open(a), Results.open(b)
    names = {simple(label): label for label in runs[0].labels}
    renamed = {label: names.setdefault(simple(label), label) for label in runs[1].labels}
    labels = tuple(dict.fromkeys([*runs[0].labels, *renamed.values()]))
    common = set(runs[0].labels) & set(renamed.values())
    pairs = pair_images(*runs)
    found = Comparison(
        labels,
        (
            tuple(label for label in runs[0].labels if label not in common),
            tuple(label for label in renamed.values() if label not in common),
        ),
        setting_differences(a, b),
        (pairs.only_a, pairs.only_b),
        np.zeros((len(labels) + 1, len(labels) + 1), np.int64),
        by_label={label: LabelChange() for label in labels},
    )
    places = {label: place for place, label in enumerate(labels)}
    heap: list[ImageChange] = []
    for pair in finished_pairs(*runs, pairs, lambda label: renamed[label]):
        advance(1)
        if pair is None:
            found.unfinished += 1
        elif pair[0].size != pair[1].size:
            found.resized += 1
        else:
            change = _add(found, *pair, places)
            if change is not None and shown:
                (heapq.heappush if len(heap) < shown else heapq.heappushpop)(heap, change)
    found.most = sorted(heap, reverse=True)
    return found


def _add(found: Comparison, one: Image, other: Image, places: Mapping[str, int]) -> ImageChange | None:
    """Count an image. Return its difference, or None where its masks are equal."""
    found.images += 1
    map_one = label_map(one, places)
    is_equal = _outlines(one) == _outlines(other)
    if is_equal:
        found.equal += 1
        masks = MatchedMasks([(k, k, 1.0) for k in range(len(one.annotations))], [], [], [])
        counts = np.bincount(map_one.ravel() % len(found.pixels), minlength=len(found.pixels))
        table = np.diag(counts)
    else:
        masks = match_masks(one.annotations, other.annotations, one.size)
        table = _table(map_one, label_map(other, places), len(found.pixels))
    found.pixels += table
    _count(found, one, other, masks, table)
    if is_equal:
        return None
    changed = table.copy()
    np.fill_diagonal(changed, 0)
    names, size = (*found.labels, NO_MASK), one.height * one.width
    best = [divmod(int(k), len(names)) for k in np.argsort(-changed, axis=None, kind="stable")[:CHANGES]]
    changes = tuple((names[i], names[j], int(changed[i, j]) / size) for i, j in best if changed[i, j])
    unmatched = len(masks.only_a) + len(masks.only_b) + 2 * len(masks.changed)
    rows = one.row.row, other.row.row
    return ImageChange(int(changed.sum()) / size, unmatched, rows, one.row.file_name, changes)


def _outlines(image: Image) -> list[tuple[str, bytes, float]]:
    return [(one.category, one.rle, one.score) for one in image.annotations]


def label_map(image: Image, places: Mapping[str, int]) -> ClassMap:
    """Return the label of every pixel (H, W) int16, -1 without a mask."""
    drawn = np.full(image.size, -1, np.int16)
    for number in painting_order(image.annotations):
        one = image.annotations[number]
        rle.decode_placed(one.rle, *image.size).paint(drawn, places[one.category])
    return drawn


def _table(one: ClassMap, other: ClassMap, count: int) -> Indices:
    """Return the number of pixels by label in two maps (count, count). -1 counts as the last label."""
    table = np.zeros((count, count), np.int64)
    differs = one != other
    same = np.bincount(one[~differs] % count, minlength=count)
    pairs = (one[differs] % count).astype(np.int64) * count + other[differs] % count
    table += np.bincount(pairs, minlength=count * count).reshape(count, count)
    table[np.diag_indices(count)] += same
    return table


def _count(found: Comparison, one: Image, other: Image, masks: MatchedMasks, table: Indices) -> None:
    annotations = one.annotations, other.annotations
    for side in (0, 1):
        for mask in annotations[side]:
            found.by_label[mask.category].masks[side] += 1
        for label, count in zip(found.labels, table.sum(axis=1 - side).tolist(), strict=False):
            found.by_label[label].pixels[side] += count
        for number in (masks.only_a, masks.only_b)[side]:
            found.by_label[annotations[side][number].category].only[side] += 1
    for number, _, iou in masks.same:
        change = found.by_label[one.annotations[number].category]
        change.matched += 1
        change.overlap += iou
    for first, second in masks.changed:
        labels = one.annotations[first].category, other.annotations[second].category
        found.moved[labels] += 1
        for side in (0, 1):
            found.by_label[labels[side]].changed[side] += 1


def setting_differences(a: Workdir, b: Workdir) -> dict[str, tuple[Any, Any]]:
    """Return key → value in A and in B for the settings that differ. Keys of labels that both have name the label."""
    one, other = _settings(a), _settings(b)
    apart = one.pop(LABELS, set()) ^ other.pop(LABELS, set())
    keys = [key for key in sorted(one.keys() | other.keys()) if not key.startswith(tuple(apart))]
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _settings(workdir: Workdir) -> dict[str, Any]:
    """Return key → value of the settings of a run, and the prefixes of its labels under `LABELS`."""
    try:
        tree = yaml.safe_load(workdir.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(tree, dict):
        return {}
    listed = tree.pop(LABELS, None) or []
    labels = {f"label {one['name']!r} ": one for one in listed if isinstance(one, dict) and "name" in one}
    tree.pop("about", None)  # describes a preset
    found = _flat(tree, "")
    for prefix, label in labels.items():
        found |= _flat({key: value for key, value in label.items() if key != "name"}, prefix)
    return {**found, LABELS: set(labels)}


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
