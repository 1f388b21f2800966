"""Convert masks to the types of other libraries. Each library is an extra of the package."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ovseg_batch.errors import UsageError
from ovseg_batch.export.table import MEASURED

if TYPE_CHECKING:
    import pandas
    import supervision

    from ovseg_batch.api.records import Mask, SegmentedImage

BOX = ("x", "y", "box_width", "box_height")
COLUMNS = ("file_name", "width", "height", "label", *MEASURED, *BOX, "area", "source", "reason")


def detections(image: SegmentedImage) -> supervision.Detections:
    """Return the masks of an image as `supervision.Detections`.

    Boxes are x0, y0, x1, y1, where x1 and y1 are exclusive. `data` holds `class_name`, `score` and `area`.
    """
    library, masks, labels = _library("supervision"), image.masks, list(image.colours)
    boxes = np.array([mask.bbox for mask in masks], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    arrays = [mask.array for mask in masks]
    found: supervision.Detections = library.Detections(
        xyxy=boxes,
        mask=np.stack(arrays) if arrays else np.zeros((0, image.height, image.width), bool),
        confidence=np.array([mask.confidence for mask in masks], np.float32),
        class_id=np.array([labels.index(mask.label) for mask in masks], int),
        data={
            "class_name": np.array([mask.label for mask in masks], str),
            "score": np.array([mask.score for mask in masks], np.float32),
            "area": np.array([mask.area for mask in masks], np.int64),
        },
    )
    return found


def data_frame(images: Iterable[SegmentedImage]) -> pandas.DataFrame:
    """Return one row per mask of the images. Columns have the same names as in `export -f csv`."""
    library = _library("pandas")
    found: pandas.DataFrame = library.DataFrame(
        [_row(image, mask) for image in images for mask in image.masks], columns=list(COLUMNS)
    )
    return found


def _row(image: SegmentedImage, mask: Mask) -> list[Any]:
    measured = [getattr(mask, name) for name in MEASURED]
    return [
        image.name,
        image.width,
        image.height,
        mask.label,
        *measured,
        *mask.bbox,
        mask.area,
        mask.source,
        mask.reason,
    ]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"{name} is not installed. Run `pip install {name}`.") from None
