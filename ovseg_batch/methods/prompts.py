"""Point prompts for SAM2 from a label map: connected components per class, one point in each (thesis 3.1.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ovseg_batch.methods.components import connected_components

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class PointPrompt:
    """One positive point. `x`, `y` are pixels of the map; `area` and `box` (x0, y0, x1, y1) are the component's."""

    label: int
    x: float
    y: float
    area: int
    box: tuple[int, int, int, int]


def component_points(
    label_map: Array,
    min_area: int,
    min_distance: float,
    point: str = "peak",
    ignore: tuple[int, ...] = (),
    confidence: Array | None = None,
) -> list[PointPrompt]:
    """One point per 8-connected component of every class.

    Args:
        label_map: (H, W) integer class per pixel; negative values belong to no class.
        min_area: components with fewer pixels are artefacts and get no point.
        min_distance: a point nearer than this to one of a larger component of its class is left out (pixels).
        point: `peak` = the pixel deepest inside the component (maximum of the L2 distance transform);
            `centroid` = the component's pixel nearest to its centre of mass; `surest` = its pixel of the highest
            confidence.
        ignore: classes that are not prompted (a background class).
        confidence: (H, W) float, for `surest`.

    Returns:
        Points by class, larger components first. Every point lies on its component.
    """
    found = connected_components(label_map)
    prompts: dict[int, list[PointPrompt]] = {}
    for k in np.argsort(-found.areas, kind="stable"):
        label, area = int(found.labels[k]), int(found.areas[k])
        if area < max(1, min_area):
            break
        if label in ignore:
            continue
        left, top, right, bottom = found.boxes[k].tolist()
        part = slice(top, bottom), slice(left, right)
        inside = found.numbers[part] == k
        if point == "peak":
            x, y = _peak(inside)
        elif point == "surest" and confidence is not None:
            x, y = _surest(inside, confidence[part])
        else:
            x, y = _nearest_to_centre(inside)
        x, y = x + left, y + top
        chosen = prompts.setdefault(label, [])
        if all(np.hypot(x - p.x, y - p.y) >= min_distance for p in chosen):
            chosen.append(PointPrompt(label, float(x), float(y), area, (left, top, right, bottom)))
    return [prompt for _, chosen in sorted(prompts.items()) for prompt in chosen]


def _peak(inside: Array) -> tuple[int, int]:
    edged = cv2.copyMakeBorder(inside.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(edged, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    y, x = divmod(int(depth.argmax()), inside.shape[1])
    return x, y


def _surest(inside: Array, confidence: Array) -> tuple[int, int]:
    y, x = divmod(int(np.where(inside, confidence, -np.inf).argmax()), inside.shape[1])
    return x, y


def _nearest_to_centre(inside: Array) -> tuple[int, int]:
    ys, xs = np.nonzero(inside)
    nearest = int(((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2).argmin())
    return int(xs[nearest]), int(ys[nearest])
