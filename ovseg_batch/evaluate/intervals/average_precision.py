"""Figures of masks of objects over weighted images. With weights of 1 they equal those of `InstanceScore`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from ovseg_batch.evaluate.instances import HALF, RETRIEVED, THREE_QUARTERS, split_entries
from ovseg_batch.evaluate.intervals.image_counts import mean_known
from ovseg_batch.types.arrays import AnyArray, Doubles, Indices, Mask


@dataclass(frozen=True, slots=True)
class _Ranked:
    """The masks of a class over all images, the highest score first.

    Attributes:
        images: (D,) index of the image of each mask.
        right, wrong: (T, D) at each IoU threshold. Ignored masks are neither.
        objects: (N,) objects of each image that count.
    """

    images: Indices
    right: Mask
    wrong: Mask
    objects: Doubles

    def precision(self, weights: Doubles) -> Doubles | None:
        """Return the mean precision at COCO's recalls for weighted images (N,): (T,), or None without objects."""
        total = weights @ self.objects
        if total <= 0:
            return None
        of_mask = weights[self.images]
        right, wrong = np.cumsum(self.right * of_mask, axis=1), np.cumsum(self.wrong * of_mask, axis=1)
        recall = right / total
        precision = right / np.maximum(right + wrong, np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # recalls that are not reached
        means: Doubles = np.array(
            [row[np.searchsorted(reached, RECALLS)].mean() for row, reached in zip(best, recall, strict=True)]
        )
        return means


RECALLS = COCOeval(iouType="segm").params.recThrs


def resampled(
    arrays: Mapping[str, AnyArray],
    categories: Sequence[str],
    rows: Indices,
    weights: Doubles,
    groups: Mapping[str, Sequence[str]],
) -> dict[str, Doubles]:
    """Return figure → values (B,) for the figures of `InstanceScore.figures`.

    Args:
        arrays: those of an `InstanceScore`.
        rows: (N,) manifest rows of the images, ascending.
        weights: (B, N).
        groups: name → categories, for `mask AP name`.
    """
    ranked = _ranked(arrays, len(categories), rows)
    by_class = np.full((len(weights), len(categories), 10), np.nan)
    for place, one in enumerate(ranked):
        for sample, weight in enumerate(weights):
            found = one.precision(weight) if one is not None else None
            if found is not None:
                by_class[sample, place] = found
    mean = by_class.mean(axis=2)
    figures = {
        "mask AP": mean_known(mean),
        "mask AP50": mean_known(by_class[..., HALF]),
        "mask AP75": mean_known(by_class[..., THREE_QUARTERS]),
    }
    for name, members in groups.items():
        figures[f"mask AP {name}"] = mean_known(mean[:, [categories.index(one) for one in members]])
    return figures | _at_half(arrays, rows, weights)


def _ranked(arrays: Mapping[str, AnyArray], classes: int, rows: Indices) -> list[_Ranked | None]:
    """Return the masks of each class, None for a class without objects and masks."""
    entries: list[list[tuple[int, AnyArray, AnyArray, AnyArray, AnyArray]]] = [[] for _ in range(classes)]
    for (row, label), _, scores, match, ignored, objects in split_entries(arrays):
        entries[label - 1].append((int(np.searchsorted(rows, row)), scores, match, ignored, objects))
    found: list[_Ranked | None] = []
    for of_class in entries:
        if not of_class:
            found.append(None)
            continue
        scores, match, ignored = (np.concatenate([one[k] for one in of_class], axis=-1) for k in (1, 2, 3))
        order = np.argsort(-scores, kind="mergesort")
        images = np.repeat([one[0] for one in of_class], [len(one[1]) for one in of_class]).astype(np.int64)
        objects = np.zeros(len(rows))
        for place, *_, ignored_objects in of_class:
            objects[place] += (~ignored_objects).sum()
        right, wrong = (match & ~ignored)[:, order], (~match & ~ignored)[:, order]
        found.append(_Ranked(images[order], right, wrong, objects))
    return found


def _at_half(arrays: Mapping[str, AnyArray], rows: Indices, weights: Doubles) -> dict[str, Doubles]:
    counts = np.zeros((len(rows), 4 + len(RETRIEVED)))  # right, wrong, objects, classes; retrieved classes
    for (row, _), _, scores, match, ignored, objects in split_entries(arrays):
        kept = ~ignored[HALF]
        right, wanted = match[HALF] & kept, int((~objects).sum())
        order = np.argsort(-scores, kind="stable")
        retrieved = [bool(wanted) and bool(right[order[:k]].any()) for k in RETRIEVED]
        counts[np.searchsorted(rows, row)] += [right.sum(), (kept & ~right).sum(), wanted, bool(wanted), *retrieved]
    right, wrong, wanted, queries, *hits = (weights @ counts).T
    precision, recall = right / np.maximum(right + wrong, 1), right / np.maximum(wanted, 1)
    found = {
        "mask precision": precision,
        "mask recall": recall,
        "mask F1": 2 * precision * recall / np.maximum(precision + recall, 1e-12),
    }
    return found | {f"retrieval@{k}": hit / np.maximum(queries, 1) for k, hit in zip(RETRIEVED, hits, strict=True)}
