"""COCO run-length masks through pycocotools: column-major, compressed counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

Array = np.ndarray[Any, Any]


def encode(mask: Array) -> bytes:
    """Compressed counts of a mask (H, W) of bool or uint8; free of a copy when the mask is Fortran-contiguous."""
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts


def decode(counts: bytes | str, height: int, width: int) -> Array:
    """The mask (height, width) of bool behind `counts`."""
    mask: Array = coco.decode({"size": [height, width], "counts": counts})
    return mask.astype(bool)


def bounding_box(counts: bytes | str, height: int, width: int) -> list[float]:
    """x, y, width, height in pixels of the mask behind `counts`."""
    box: list[float] = coco.toBbox({"size": [height, width], "counts": counts}).tolist()
    return box


def area(counts: bytes | str, height: int, width: int) -> int:
    """Pixels of the mask behind `counts`."""
    return int(coco.area({"size": [height, width], "counts": counts}))
