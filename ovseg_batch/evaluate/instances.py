"""Mask AP, precision, recall and retrieval. pycocotools matches masks per image; the results are combined at the end.

`COCOeval` matches every image and class separately, and ranks over all images only in `accumulate`. The matches of an
image are stored as arrays, so the masks of a data set are never all in memory. Detections have no `bbox`, because COCO
would use its size and not the mask's area.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovseg_batch.evaluate.truth.coco_file import Instance
from ovseg_batch.types import Annotation
from ovseg_batch.types.arrays import AnyArray, Doubles

AREAS = 4  # number of COCO's size classes, "all" first
HALF, THREE_QUARTERS = 0, 5  # indices of IoU 0.5 and 0.75 in its thresholds
RETRIEVED = (1, 5)  # values of K in retrieval@K


class InstanceScore:
    """Sums over images. `arrays` holds the complete state.

    An entry is one image, class and size class. `keys` (E, 5) are row, class, size class, and numbers of detections and
    objects. The other arrays are concatenated over the entries: the scores of detections, whether each is matched and
    ignored at the ten IoU thresholds, and whether each object is ignored.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        self._categories = list(categories)
        self._parts: list[dict[str, AnyArray]] = []

    def add(self, row: int, size: tuple[int, int], found: Sequence[Annotation], truth: Sequence[Instance]) -> None:
        """Add one image.

        Args:
            row: a number that is unique to the image.
            size: (H, W) in pixels.
            found: masks of the run.
            truth: objects of the ground truth.
        """
        identity = {name: k for k, name in enumerate(self._categories, start=1)}
        shape = list(size)
        objects = [
            {
                "id": k,
                "image_id": row,
                "category_id": identity[one.category],
                "segmentation": {"size": shape, "counts": one.rle},
                "area": one.area,
                "iscrowd": int(one.crowd),
            }
            for k, one in enumerate(truth, start=1)
        ]
        results = [
            {
                "image_id": row,
                "category_id": identity[one.category],
                "segmentation": {"size": shape, "counts": one.rle},
                "score": one.score,
            }
            for one in found
            if one.category in identity
        ]
        if not objects and not results:
            return
        dataset = {
            "info": {},
            "images": [{"id": row, "height": size[0], "width": size[1]}],
            "categories": [{"id": k, "name": name} for name, k in identity.items()],
            "annotations": objects,
        }
        self._parts.append(_entries(_evaluated(dataset, results)))

    def arrays(self) -> dict[str, AnyArray]:
        if not self._parts:
            return _entries([])
        names = self._parts[0]
        return {name: np.concatenate([part[name] for part in self._parts], axis=-1) for name in names}

    def merge(self, arrays: Mapping[str, AnyArray]) -> None:
        """Add what another score of the same classes has counted."""
        self._parts.append({name: arrays[name] for name in _entries([])})

    def figures(self, classes: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Return AP over all classes and per group of classes; AP50, AP75; precision, recall and F1; retrieval."""
        precision = self._precision()
        of_class = {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(self._categories)}
        found = {
            "mask AP": _mean(precision[..., 0]),
            "mask AP50": _mean(precision[HALF, :, :, 0]),
            "mask AP75": _mean(precision[THREE_QUARTERS, :, :, 0]),
            **{
                f"mask AP {group}": _mean(np.array([of_class[name] for name in names], float))
                for group, names in classes.items()
            },
        }
        return {**found, **self._at_half()}

    def class_ap(self) -> dict[str, float]:
        precision = self._precision()
        return {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(self._categories)}

    def _precision(self) -> Doubles:
        """Return COCO's precision (10 IoU thresholds, 101 recalls, classes, 4 sizes), -1 without objects."""
        arrays = self.arrays()
        rows = sorted({int(row) for row in arrays["keys"][0]})
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(iouType="segm")
            evaluation.params.imgIds = rows
            evaluation.params.catIds = list(range(1, len(self._categories) + 1))
            evaluation._paramsEval = evaluation.params
            evaluation.evalImgs = _as_evaluated(arrays, rows, len(self._categories))
            evaluation.accumulate()
        precision: Doubles = evaluation.eval["precision"][..., -1]
        return precision

    def _at_half(self) -> dict[str, float]:
        """Return metrics at IoU 0.5: precision, recall and F1 over all masks, and retrieval@K."""
        arrays = self.arrays()
        matched, wrong, missed, queries = 0, 0, 0, 0
        hits = dict.fromkeys(RETRIEVED, 0)
        for _, _, scores, match, ignored, objects in split_entries(arrays):
            counted = ~ignored[HALF]
            right = match[HALF] & counted
            wanted = int((~objects).sum())
            matched += int(right.sum())
            wrong += int((counted & ~right).sum())
            missed += wanted - int(right.sum())
            if wanted:
                queries += 1
                order = np.argsort(-scores, kind="stable")
                for k in RETRIEVED:
                    hits[k] += bool(right[order[:k]].any())
        precision, recall = matched / max(matched + wrong, 1), matched / max(matched + missed, 1)
        found = {
            "mask precision": precision,
            "mask recall": recall,
            "mask F1": 2 * precision * recall / max(precision + recall, 1e-12),
        }
        return found | {f"retrieval@{k}": count / max(queries, 1) for k, count in hits.items()}


def _evaluated(dataset: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what COCOeval finds for each class and size class of a data set in COCO's format."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        found = truth.loadRes(results) if results else COCO()
        evaluation = COCOeval(truth, found, "segm")
        evaluation.evaluate()
    return [entry for entry in evaluation.evalImgs if entry is not None]


def _entries(evaluated: Sequence[Mapping[str, Any]]) -> dict[str, AnyArray]:
    """Convert the results of COCOeval to arrays. Parts are concatenated along the last axis."""
    sizes = COCOeval(iouType="segm").params.areaRng
    keys = [
        (e["image_id"], e["category_id"], sizes.index(e["aRng"]), len(e["dtScores"]), len(e["gtIgnore"]))
        for e in evaluated
    ]
    return {
        "keys": np.array(keys, np.int64).reshape(-1, 5).T,
        "scores": np.concatenate([np.zeros(0), *(np.asarray(e["dtScores"], float) for e in evaluated)]),
        "matched": np.concatenate([np.zeros((10, 0), bool), *(e["dtMatches"] > 0 for e in evaluated)], axis=1),
        "ignored": np.concatenate(
            [np.zeros((10, 0), bool), *(np.asarray(e["dtIgnore"], bool).reshape(10, -1) for e in evaluated)], axis=1
        ),
        "objects": np.concatenate([np.zeros(0, bool), *(np.asarray(e["gtIgnore"], bool) for e in evaluated)]),
    }


def split_entries(arrays: Mapping[str, AnyArray], size: int | None = 0) -> Any:
    """Yield the entries of one size class or of all: row and class, size class, scores, matched, ignored, objects."""
    detection, thing = 0, 0
    for row, label, area, found, wanted in arrays["keys"].T.tolist():
        these, those = slice(detection, detection + found), slice(thing, thing + wanted)
        detection, thing = these.stop, those.stop
        if size is None or area == size:
            parts = (arrays["scores"][these], arrays["matched"][:, these], arrays["ignored"][:, these])
            yield (row, label), area, *parts, arrays["objects"][those]


def _as_evaluated(arrays: Mapping[str, AnyArray], rows: Sequence[int], classes: int) -> list[dict[str, Any] | None]:
    """Return `COCOeval.evalImgs`, ordered by class, size class and image."""
    place = {row: k for k, row in enumerate(rows)}
    evaluated: list[dict[str, Any] | None] = [None] * (classes * AREAS * len(rows))
    for (row, label), area, scores, matched, ignored, objects in split_entries(arrays, None):
        evaluated[((label - 1) * AREAS + area) * len(rows) + place[row]] = {
            "dtScores": scores.tolist(),
            "dtMatches": matched.astype(float),
            "dtIgnore": ignored,
            "gtIgnore": objects.astype(float),
        }
    return evaluated


def _mean(values: Doubles) -> float:
    known = values[(values > -1) & ~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
