"""Score a finished run against a data set's ground truth. The scores of shards can be stored and summed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ovseg_batch.datasets import Dataset
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.calibration import CalibrationScore
from ovseg_batch.evaluate.instances import InstanceScore
from ovseg_batch.evaluate.intervals.figures import Intervals, instance_intervals, semantic_intervals
from ovseg_batch.evaluate.intervals.image_counts import ImageCounts
from ovseg_batch.evaluate.metrics import IGNORE, OTHER, SemanticScore, class_iou
from ovseg_batch.evaluate.panoptic import PanopticScore
from ovseg_batch.evaluate.truth.datasets import Truth, TruthSource
from ovseg_batch.io import rle
from ovseg_batch.methods.confidence import ImageConfidence
from ovseg_batch.types import Annotation, FinishedImage, painting_order
from ovseg_batch.types.arrays import AnyArray, ClassMap


class Score:
    """All scores on a data set.

    Args:
        dataset: the data set, which defines the classes.
        reader: reader of the ground truth.
        labels: labels of the run.

    Raises:
        UsageError: none of the labels is a class of the data set.
    """

    def __init__(self, dataset: Dataset, reader: TruthSource, labels: Sequence[str]) -> None:
        self._dataset, self._reader = dataset, reader
        if not set(labels) & set(dataset.classes):
            raise UsageError(
                f"The run has none of the classes of {dataset.title}, which are {', '.join(dataset.classes[:5])}, … "
                f"Run it with --labels dataset:{dataset.name}."
            )
        scored = len(dataset.scored)
        self._semantic = SemanticScore(scored) if reader.has_classes else None
        self._instances = InstanceScore(dataset.things) if reader.has_instances and dataset.things else None
        self._panoptic = PanopticScore(scored) if self._semantic and self._instances else None
        self._calibration = CalibrationScore(scored) if self._semantic is not None else None
        self._counts = ImageCounts(scored) if self._semantic is not None else None
        self._images: dict[int, float] = {}  # manifest row → mean IoU of the image
        self.without_truth = 0  # images of the run
        self.skipped: tuple[str, ...] = ()  # for each image without a score, the reason

    def add(self, image: FinishedImage[Annotation]) -> None:
        """Add one image. An image whose size differs from that of its ground truth is skipped."""
        name, size = image.row.file_name, image.size
        truth = self._reader.read(name)
        for tall, wide in truth.sizes:
            if (tall, wide) != size:
                reason = f"{name} is {size[1]} × {size[0]} in the run and {wide} × {tall} in the truth."
                if (wide, tall) == size:
                    reason += " The truth has the sides of the image before its EXIF rotation; rotate the truth."
                self.skipped = (*self.skipped, reason)
                return
        quality, boundary, counts = math.nan, math.nan, None
        if self._semantic is not None and truth.classes is not None:
            counts, boundary = self._semantic.add(paint(image, self._dataset), truth.classes)
            self._add_masks(image.annotations, truth.classes)
            own = class_iou(counts)
            quality = float(own[~np.isnan(own)].mean()) if not np.isnan(own).all() else 1.0
        if self._instances is not None and truth.instances is not None:
            things = [one for one in image.annotations if one.category in self._dataset.things]
            objects = [one for one in truth.instances if one.category in self._dataset.things]
            self._instances.add(image.row.row, size, things, objects)
        errors, segments = math.nan, None
        if self._panoptic is not None:
            before = self._panoptic.arrays()["panoptic"].copy()
            errors = self._add_segments(image.annotations, truth)
            segments = self._panoptic.arrays()["panoptic"] - before
        if self._counts is not None and counts is not None:
            self._counts.add(image.row.row, counts, boundary, segments)
        if self._calibration is not None:
            sure = ImageConfidence.from_masks(one.confidence for one in image.annotations)
            self._calibration.add_image(image.row.row, sure.doubt, errors)
        self._images[image.row.row] = quality

    def arrays(self) -> dict[str, AnyArray]:
        rows = np.array(list(self._images), np.int64)
        out: dict[str, AnyArray] = {
            "rows": rows,
            "quality": np.array(list(self._images.values()), float),
            "skipped": np.array(self.skipped, str),
        }
        for part in self._parts():
            out |= part.arrays()
        return out

    def merge(self, arrays: Mapping[str, AnyArray]) -> None:
        self._images |= dict(zip(arrays["rows"].tolist(), arrays["quality"].tolist(), strict=True))
        self.skipped = (*self.skipped, *arrays["skipped"].tolist())
        for part in self._parts():
            part.merge(arrays)

    def _parts(self) -> list[SemanticScore | InstanceScore | PanopticScore | CalibrationScore | ImageCounts]:
        parts = (self._semantic, self._instances, self._panoptic, self._calibration, self._counts)
        return [part for part in parts if part is not None]

    @property
    def images(self) -> int:
        """Return the number of scored images."""
        return len(self._images)

    def worst(self, count: int) -> list[int]:
        """Return the manifest rows of the images with the lowest scores, the lowest first."""
        known = [(quality, row) for row, quality in self._images.items() if not math.isnan(quality)]
        return [row for _, row in sorted(known)[:count]]

    def quality(self, row: int) -> float:
        """Return the mean IoU of one image over the classes in its truth or its prediction."""
        return self._images[row]

    def figures(self) -> dict[str, float]:
        """Return metric → value, mostly in [0, 1]. Metrics that the ground truth does not support are missing."""
        found: dict[str, float] = {"images": len(self._images)}
        groups = self._groups()
        if self._semantic is not None:
            found["mIoU"] = self._semantic.mean_iou()
            for name, members in groups.items():
                found[f"mIoU {name}"] = self._semantic.mean_iou([self._dataset.scored.index(one) for one in members])
            found["pixel accuracy"] = self._semantic.accuracy()
            found["mean accuracy"] = self._semantic.mean_accuracy()
            found["boundary F1"] = self._semantic.boundary_f1()
        if self._instances is not None:
            found |= self._instances.figures(self._thing_groups())
        if self._panoptic is not None:
            found |= dict(zip(("PQ", "SQ", "RQ"), self._panoptic.quality(), strict=True))
            assert self._calibration is not None
            found["errors in tenth"] = self._calibration.worst_share()
        return found

    def intervals(self) -> Intervals:
        """Return figure → limits of its 95 % interval, from bootstrap samples of the images.

        The figures without an interval are missing: the number of images, and the share of errors in a tenth of them.
        """
        found: Intervals = {}
        if self._counts is not None:
            groups = {name: [self._dataset.scored.index(one) for one in them] for name, them in self._groups().items()}
            found |= semantic_intervals(self._counts, groups, self._panoptic is not None)
        if self._instances is not None:
            rows = np.sort(np.array(list(self._images), np.int64))
            found |= instance_intervals(self._instances.arrays(), self._dataset.things, rows, self._thing_groups())
        return found

    @property
    def counts(self) -> ImageCounts | None:
        """Return the counts of single images, or None if the ground truth has no class maps."""
        return self._counts

    def thresholds(self, precision: float) -> dict[str, float]:
        """Return the least confidence per class with which its pixels reach a precision.

        Raises:
            UsageError: the ground truth has no class maps.
        """
        if self._calibration is None:
            raise UsageError(f"The ground truth of {self._dataset.title} has no class maps, which thresholds need.")
        found = self._calibration.thresholds(self._dataset.scored, precision)
        return {name: value for name, value in found.items() if name != "background"}

    @property
    def calibration(self) -> CalibrationScore | None:
        """Return the calibration, or None if the ground truth has no class maps."""
        return self._calibration

    def classes(self) -> dict[str, dict[str, float]]:
        """Return metric → class → value."""
        table: dict[str, dict[str, float]] = {name: {} for name in self._dataset.scored}
        if self._semantic is not None:
            for kind, values in (("IoU", self._semantic.class_iou()), ("accuracy", self._semantic.class_accuracy())):
                for name, value in zip(self._dataset.scored, values.tolist(), strict=True):
                    table[name][kind] = value
        if self._instances is not None:
            for name, value in self._instances.class_ap().items():
                table[name]["AP"] = value
        if self._panoptic is not None:
            for name, row in zip(self._dataset.scored, self._panoptic.class_quality().tolist(), strict=True):
                table[name]["PQ"] = row[0]
        return table

    def _groups(self) -> dict[str, list[str]]:
        """Return the groups of classes: things and stuff, base and novel, if the data set defines them."""
        classes, things, novel = self._dataset.classes, self._dataset.things, self._dataset.novel
        stuff = [name for name in classes if name not in things]
        groups = {"stuff": stuff, "things": list(things)} if stuff and things else {}
        if novel:
            groups |= {"base": [name for name in classes if name not in novel], "novel": list(novel)}
        return groups

    def _thing_groups(self) -> dict[str, list[str]]:
        """Return the base and novel classes that have objects, if the data set defines them."""
        things = self._dataset.things
        named = {name: members for name, members in self._groups().items() if name in ("base", "novel")}
        return {name: [one for one in members if one in things] for name, members in named.items()}

    def _add_masks(self, annotations: Sequence[Annotation], truth: ClassMap) -> None:
        """Count the correct pixels of every mask, among pixels that the truth does not ignore."""
        assert self._calibration is not None
        for one in annotations:
            if one.category in self._dataset.scored:
                label = self._dataset.scored.index(one.category)
                mask = rle.decode_placed(one.rle, *truth.shape)
                under = truth[mask.place][mask.pixels]
                known = int((under != IGNORE).sum())
                self._calibration.add_mask(label, one.confidence, known, int((under == label).sum()))

    def _add_segments(self, annotations: Sequence[Annotation], truth: Truth) -> int:
        """Add the segments of an image. Return the number of wrong and missed segments."""
        assert self._panoptic is not None and truth.classes is not None and truth.instances is not None
        scored, things = self._dataset.scored, self._dataset.things
        shape = truth.classes.shape
        found, found_class = np.zeros(shape, np.int32), [0] * bool(self._dataset.background)
        found[:] = len(found_class)  # pixels without a mask are background, if the data set counts it
        stuff: dict[str, int] = {}
        counted = [one for one in annotations if one.category in scored]
        numbers = []
        for category in (one.category for one in counted):
            if category not in stuff:
                found_class.append(scored.index(category))
            number = stuff.get(category, len(found_class))
            if category not in things:
                stuff[category] = number
            numbers.append(number)
        for index in painting_order(counted):
            rle.decode_placed(counted[index].rle, *shape).paint(found, numbers[index])
        wanted, wanted_class, crowds = np.zeros(shape, np.int32), list[int](), list[int]()
        for label in np.unique(truth.classes):
            if label >= 0 and scored[label] not in things:
                wanted_class.append(int(label))
                wanted[truth.classes == label] = len(wanted_class)
        if (truth.classes == OTHER).any():
            wanted_class.append(OTHER)  # of no class, so nothing matches it
            wanted[truth.classes == OTHER] = len(wanted_class)
            crowds.append(len(wanted_class))
        for instance in sorted(truth.instances, key=lambda one: -one.area):
            wanted_class.append(scored.index(instance.category))
            rle.decode_placed(instance.rle, *shape).paint(wanted, len(wanted_class))
            if instance.crowd:
                crowds.append(len(wanted_class))
        return self._panoptic.add(found, found_class, wanted, wanted_class, crowds)


def paint(image: FinishedImage[Annotation], dataset: Dataset) -> ClassMap:
    """Return the class map (H, W) int16 of an image's masks: indices into `Dataset.scored`.

    Pixels without a mask are background if the data set counts it, otherwise -1. Other classes are ignored.
    """
    classes = np.full(image.size, 0 if dataset.background else -1, np.int16)
    for number in painting_order(image.annotations):
        one = image.annotations[number]
        if one.category in dataset.scored:
            rle.decode_placed(one.rle, *image.size).paint(classes, dataset.scored.index(one.category))
    return classes
