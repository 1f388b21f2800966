"""Point prompts for SAM2: one point per connected component of a label map.

Source: García García 2025, section 3.1.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ovseg_batch.methods.components import Components, connected_components
from ovseg_batch.methods.runs import RunMap
from ovseg_batch.types.arrays import Integers, Mask, Numbers

LARGE = 512  # pixels along a side of a component up to which all of its pixels are compared
GRID = 256  # most pixels along a side of a larger component that are compared


@dataclass(frozen=True, slots=True)
class PointPrompt:
    """A positive point prompt.

    Attributes:
        label: class of the component.
        x, y: pixels of the map.
        area: area of the component in pixels.
        box: x0, y0, x1, y1 of the component in pixels.
    """

    label: int
    x: float
    y: float
    area: int
    box: tuple[int, int, int, int]


def component_points(
    label_map: Integers,
    min_area: int,
    min_distance: float,
    point: str = "peak",
    ignore: tuple[int, ...] = (),
    confidence: Numbers | None = None,
    limit: int | None = None,
) -> list[PointPrompt]:
    """Return one point per 8-connected component of every class.

    Args:
        label_map: (H, W) integer, class of each pixel; negative where there is none.
        min_area: least area of a component in pixels. Smaller components are skipped as artefacts.
        min_distance: least distance in pixels to the points of larger components of the class. Nearer points are
            skipped.
        point: `peak` = the pixel deepest inside the component (maximum of the L2 distance transform), to within a
            256th of its longer side;
            `centroid` = the component's pixel nearest to its centre of mass; `surest` = its pixel of the highest
            confidence.
        ignore: classes that are not prompted (a background class).
        confidence: (H, W) float, required for `surest`.
        limit: number of points after which smaller components are skipped. None: there is no limit.

    Returns:
        Points by class, larger components first. Every point lies in its component.
    """
    found = connected_components(RunMap.of(label_map))
    prompts: dict[int, list[PointPrompt]] = {}
    sizes: list[int] = []
    for k in np.argsort(-found.areas, kind="stable"):
        label, area = int(found.labels[k]), int(found.areas[k])
        if area < max(1, min_area) or (limit is not None and len(sizes) >= limit and area < sizes[-1]):
            break
        if label in ignore:
            continue
        left, top, right, bottom = found.boxes[k].tolist()
        part = None if confidence is None else confidence[top:bottom, left:right]
        x, y = _point(found, int(k), point, part)
        x, y = x + left, y + top
        chosen = prompts.setdefault(label, [])
        if all(np.hypot(x - p.x, y - p.y) >= min_distance for p in chosen):
            chosen.append(PointPrompt(label, float(x), float(y), area, (left, top, right, bottom)))
            sizes.append(area)
    return [prompt for _, chosen in sorted(prompts.items()) for prompt in chosen]


def _point(found: Components, number: int, point: str, confidence: Numbers | None) -> tuple[int, int]:
    """Return x, y of the point of a component in its box, as `component_points` names it."""
    if point == "peak":
        return _peak(found, number)
    inside = found.within_box(number)
    if point == "surest" and confidence is not None:
        return _surest(inside, confidence)
    return _nearest_to_centre(inside)


def _peak(found: Components, number: int) -> tuple[int, int]:
    """Return the deepest pixel of a component. In a large box, only the pixels of a grid are compared."""
    left, top, right, bottom = found.boxes[number].tolist()
    side = max(bottom - top, right - left)
    step = 1 if side <= LARGE else -(-side // GRID)
    inside = found.within_box(number, step)
    if not inside.any():
        step, inside = 1, found.within_box(number)
    edged = cv2.copyMakeBorder(inside.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(edged, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    y, x = divmod(int(depth.argmax()), inside.shape[1])
    return x * step + step // 2, y * step + step // 2


def _surest(inside: Mask, confidence: Numbers) -> tuple[int, int]:
    y, x = divmod(int(np.where(inside, confidence, -np.inf).argmax()), inside.shape[1])
    return x, y


def _nearest_to_centre(inside: Mask) -> tuple[int, int]:
    ys, xs = np.nonzero(inside)
    nearest = int(((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2).argmin())
    return int(xs[nearest]), int(ys[nearest])
