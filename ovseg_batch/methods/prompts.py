"""Point prompts for SAM2 from a label map: connected components per class, one point in each (thesis 3.1.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

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
    prompts: list[PointPrompt] = []
    for label in np.unique(label_map):
        if label < 0 or int(label) in ignore:
            continue
        prompts += _class_points(label_map == label, int(label), min_area, min_distance, point, confidence)
    return prompts


def _class_points(
    mask: Array, label: int, min_area: int, min_distance: float, point: str, confidence: Array | None
) -> list[PointPrompt]:
    _, components, stats, centroids = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    order = np.argsort(-areas[1:], kind="stable") + 1
    chosen: list[PointPrompt] = []
    for k in order[areas[order] >= min_area]:
        area = int(areas[k])
        left, top, width, height = (int(v) for v in stats[k, :4])
        inside = components[top : top + height, left : left + width] == k
        if point == "peak":
            x, y = _peak(inside)
        elif point == "surest" and confidence is not None:
            x, y = _surest(inside, confidence[top : top + height, left : left + width])
        else:
            x, y = _nearest(inside, centroids[k][0] - left, centroids[k][1] - top)
        x, y = x + left, y + top
        if all(np.hypot(x - p.x, y - p.y) >= min_distance for p in chosen):
            box = (left, top, left + width, top + height)
            chosen.append(PointPrompt(label, float(x), float(y), area, box))
    return chosen


def _peak(inside: Array) -> tuple[int, int]:
    depth = cv2.distanceTransform(np.pad(inside, 1).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    y, x = divmod(int(depth.argmax()), inside.shape[1])
    return x, y


def _surest(inside: Array, confidence: Array) -> tuple[int, int]:
    y, x = divmod(int(np.where(inside, confidence, -np.inf).argmax()), inside.shape[1])
    return x, y


def _nearest(inside: Array, x: float, y: float) -> tuple[int, int]:
    ys, xs = np.nonzero(inside)
    best = int(((xs - x) ** 2 + (ys - y) ** 2).argmin())
    return int(xs[best]), int(ys[best])
