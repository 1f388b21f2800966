"""Merge: make the annotations of an image of those of two methods. No image is read and no model runs.

Things come before stuff: under `merge.rule: kind`, pixels of an object belong to no mask of stuff, as in panoptic
segmentation (Kirillov et al., Panoptic Segmentation, 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ovseg_batch.errors import FailureCode
from ovseg_batch.io import rle
from ovseg_batch.methods.merging import agreed, pairs, visible
from ovseg_batch.stages.base import Stage, Upstream, done, failed, ready
from ovseg_batch.stages.merge.plan import THINGS_ALONE, MergePlan
from ovseg_batch.types import Annotation, ImageRow, RowResult

Masks = list[Annotation]
Size = tuple[int, int]


class MergeStage(MergePlan, Stage):
    """Merges the annotations of two methods."""

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        for row in todo:
            first, second = (upstream[name].values(row.row) for name in self.needs)
            size = (first["height"], first["width"])
            if size != (second["height"], second["width"]):
                yield failed(row, FailureCode.CHANGED, f"{' and '.join(self.needs)} have read images of other sizes")
                continue
            annotations = self._merged(first["annotations"], second["annotations"], size)
            yield done(row, {"height": size[0], "width": size[1], "annotations": annotations})

    def _merged(self, objects: Sequence[Annotation], dense: Sequence[Annotation], size: Size) -> Masks:
        if self._settings.agreement:
            objects, dense = self._rated(objects, dense, 0, size), self._rated(dense, objects, 1, size)
        if self._settings.rule == "kind":
            things = [self._noted(one, 0) for one in objects if self._kinds[one.category] == "thing"]
            stuff = [self._noted(one, 1) for one in dense if self._kinds[one.category] == "stuff"]
            return self._painted(things, stuff, size)
        return self._painted(self._paired(objects, dense, size), [], size)

    def _rated(self, masks: Sequence[Annotation], others: Sequence[Annotation], which: int, size: Size) -> Masks:
        """Return masks of a method with a confidence that takes in what the other method has.

        Args:
            which: the method of `masks`, 0 or 1.
        """
        other = self._methods[1 - which]
        whole = {
            name: rle.merged([one.rle for one in others if one.category == name], *size)
            for name in {one.category for one in masks}
        }
        found = []
        for one in masks:
            if other in THINGS_ALONE and self._kinds[one.category] == "stuff":
                found.append(one)
                continue
            coverage = float(rle.overlaps_with([one.rle], [whole[one.category]], *size)[1][0, 0])
            note = f"{other} has the label in {coverage:.0%} of it"
            found.append(replace(one, confidence=agreed(one.confidence, coverage), reason=_joined(one.reason, note)))
        return found

    def _noted(self, one: Annotation, which: int) -> Annotation:
        return replace(one, reason=_joined(one.reason, f"{self._kinds[one.category]}, from {self._methods[which]}"))

    def _paired(self, objects: Sequence[Annotation], dense: Sequence[Annotation], size: Size) -> Masks:
        """Return the masks of both methods, one of each pair. Their score is their confidence.

        The scores of two methods have different scales. Confidence is the one measure that both have.
        """
        overlap, _ = rle.overlaps_with([one.rle for one in objects], [one.rle for one in dense], *size)
        of_object = pairs(
            overlap, [one.category for one in objects], [one.category for one in dense], self._settings.iou
        )
        of_dense = {column: row for row, column in of_object.items()}
        found = []
        for k, one in enumerate(objects):
            found += self._chosen(one, dense[of_object[k]] if k in of_object else None, 0)
        for k, one in enumerate(dense):
            found += self._chosen(one, objects[of_dense[k]] if k in of_dense else None, 1)
        return found

    def _chosen(self, one: Annotation, other: Annotation | None, which: int) -> Masks:
        """Return a mask of a method as the rule keeps it, or none where the rule keeps the other mask of its pair."""
        average, own, rival = self._settings.rule == "average", *(self._methods[k] for k in (which, 1 - which))
        if other is None:
            confidence, note = one.confidence * (0.5 if average else 1.0), f"from {own} alone"
        elif average:
            if which == 1:
                return []
            confidence, note = (one.confidence + other.confidence) / 2, f"from {own}, paired with one from {rival}"
        else:
            if one.confidence < other.confidence or (one.confidence == other.confidence and which == 1):
                return []
            confidence = one.confidence
            note = f"from {own} with {one.confidence:.2f}, over {rival} with {other.confidence:.2f}"
        return [replace(one, confidence=confidence, score=confidence, reason=_joined(one.reason, note))]

    def _painted(self, masks: Masks, behind: Masks, size: Size) -> Masks:
        """Return masks that share pixels as `paint` says, in the order of painting.

        Args:
            masks: painted by score, the highest last.
            behind: masks that these cover in any case.
        """
        exclusive = self._paint == "exclusive"
        front = [(one, False) for one in sorted(masks, key=_score)[::-1]]
        if not exclusive and not behind:
            return [one for one, _ in front[::-1]]
        front += [(one, True) for one in sorted(behind, key=_score)[::-1]]
        placed = ((rle.decode_placed(one.rle, *size), exclusive or back, exclusive or not back) for one, back in front)
        least = max(1, math.ceil(self._settings.min_area * size[0] * size[1]))
        found = []
        for (one, _), rest in zip(front, visible(placed, size), strict=True):
            area = int(rest.pixels.sum())
            if area == one.area:
                found.append(one)
            elif area >= least:
                counts = rle.encode_placed(rest, *size)
                found.append(replace(one, rle=counts, area=area, bbox=tuple(rle.bounding_box(counts, *size))))
        return found[::-1]


def _score(one: Annotation) -> float:
    return one.score


def _joined(*notes: str | None) -> str:
    return "; ".join(note for note in notes if note)
