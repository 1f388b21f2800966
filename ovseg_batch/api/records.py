"""The results of a run in Python: images, their masks, and failed images."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg_batch.io import rle
from ovseg_batch.methods.colours import palette
from ovseg_batch.methods.confidence import ImageConfidence
from ovseg_batch.types import Annotation, FinishedImage
from ovseg_batch.types.arrays import ClassMap, Doubles, Pixels

if TYPE_CHECKING:
    import pandas
    import supervision

Colours = Mapping[str, tuple[int, int, int]]

STRENGTH = 0.55  # share of a label's colour in the pixels of its masks
EDGE = 0.5  # factor of the brightness along an outline


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask of an image, in pixels of the upright image.

    Attributes:
        label: name of its class.
        score: rank of the mask among masks of its label, in [0, 1].
        confidence: reliability of the mask, in [0, 1] (docs/confidence.md).
        bbox: x, y, width, height in pixels.
        area: number of pixels.
        rle: COCO's compressed counts.
        size: (H, W) of the image.
        source: origin of the outline, `sam` or `dense`.
        margin: mean difference between the best and the second-best class probability, in [0, 1].
        coverage: share of the mask whose class in the dense map is its label. None without a dense map.
        predicted_iou: IoU that SAM2 predicts, in [0, 1]. None where SAM2 did not draw the outline.
        stability: IoU of the mask under a lower and a higher threshold, in [0, 1]. None where `predicted_iou` is.
        reason: reason why the mask was selected, if a rule decided between several.
    """

    label: str
    score: float
    confidence: float
    bbox: tuple[float, float, float, float]
    area: int
    rle: bytes
    size: tuple[int, int]
    source: str
    margin: float | None = None
    coverage: float | None = None
    predicted_iou: float | None = None
    stability: float | None = None
    reason: str | None = None

    @classmethod
    def from_annotation(cls, one: Annotation, size: tuple[int, int]) -> Mask:
        """Return the mask of an annotation of an image of (H, W) pixels."""
        known = {name: getattr(one, name) for name in cls.__dataclass_fields__ if name in one.__dataclass_fields__}
        return cls(label=one.category, size=size, **known)

    @property
    def array(self) -> NDArray[np.bool_]:
        """Return the mask, (H, W) bool. It is decoded at every access."""
        return rle.decode(self.rle, *self.size)

    def polygons(self, tolerance: float = 0.0) -> list[Doubles]:
        """Return the outlines along pixel edges, for readers that fill polygons as pycocotools does.

        Args:
            tolerance: tolerance of the simplification in pixels. 0 reproduces the mask exactly.

        Returns:
            One ring (N, 2) float64 of x, y per connected part. Bridges of zero width join a part and its holes.
        """
        from ovseg_batch.methods.polygons import edge_rings

        return edge_rings(rle.decode_placed(self.rle, *self.size), tolerance)


@dataclass(frozen=True, slots=True)
class SegmentedImage:
    """An image with its masks.

    Attributes:
        name: file name relative to INPUT.
        path: path or URL of the image. None for an image in memory.
        height, width: size of the upright image in pixels.
        confidence: lowest confidence of a mask; 1 without masks.
        unsure: number of masks with a confidence below 0.5.
        masks: masks of all labels.
        colours: label → red, green, blue, in the order of the run's labels.
    """

    name: str
    path: str | None
    height: int
    width: int
    confidence: float
    unsure: int
    masks: tuple[Mask, ...]
    colours: Colours
    _source: Callable[[], Pixels] = field(repr=False, compare=False)

    @classmethod
    def from_finished(
        cls,
        name: str,
        path: str | None,
        image: FinishedImage[Annotation],
        colours: Colours,
        source: Callable[[], Pixels],
    ) -> SegmentedImage:
        """Return a finished image under a name. `source` returns its pixels."""
        masks = tuple(Mask.from_annotation(one, image.size) for one in image.annotations)
        sure = ImageConfidence.from_masks(mask.confidence for mask in masks)
        return cls(name, path, *image.size, sure.least, sure.unsure, masks, colours, source)

    def read(self) -> Pixels:
        """Return the image, upright: (H, W, 3) uint8 RGB. A file is read under the limits of its run.

        Raises:
            RowError: the file cannot be read any more.
        """
        return self._source()

    def label_map(self, labels: Sequence[str]) -> ClassMap:
        """Return the class map (H, W) int16: indices into `labels`, -1 where none of them has a mask.

        Of masks that overlap, the one with the highest score has the pixel.
        """
        found = np.full((self.height, self.width), -1, np.int16)
        for mask in sorted(self.masks, key=lambda one: one.score):
            if mask.label in labels:
                found[mask.array] = labels.index(mask.label)
        return found

    def overlay(self) -> Image.Image:
        """Return the image with every mask in its label's colour."""
        pixels = self.read().astype(np.float32)
        for mask in self.masks:
            inside = mask.array
            pixels[inside] += STRENGTH * (np.array(self.colours[mask.label]) - pixels[inside])
            kept = inside.copy()
            kept[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
            pixels[inside & ~kept] *= EDGE
        return Image.fromarray(pixels.astype(np.uint8))

    def to_supervision(self) -> supervision.Detections:
        """Return the masks as `Detections` of the library supervision. `class_id` counts the run's labels from 0.

        Raises:
            UsageError: supervision is not installed.
        """
        from ovseg_batch.api.conversions import detections

        return detections(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row per mask, with the columns of `Run.to_pandas`.

        Raises:
            UsageError: pandas is not installed.
        """
        from ovseg_batch.api.conversions import data_frame

        return data_frame([self])

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.overlay().save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed image: the stage in which it failed, the code of the failure, and its message."""

    row: int
    key: str
    stage: str
    code: str
    message: str


def label_colours(labels: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return label → red, green, blue, in the order of the labels."""
    chosen = palette(len(labels)).tolist() if labels else []
    return {label: (red, green, blue) for label, (red, green, blue) in zip(labels, chosen, strict=True)}
