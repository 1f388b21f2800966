"""One colour for each label, the same wherever it is shown."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def palette(count: int) -> Array:
    """(count, 3) uint8 RGB: steps of the golden ratio round the hue circle, in three strengths."""
    import cv2  # takes 40 MB, which opening a run saves

    steps = np.arange(count)
    hsv = np.stack([(steps * 179 * 0.618) % 180, 150 + 60 * (steps % 2), 235 - 60 * (steps % 3 == 2)], axis=1)
    colours: Array = np.asarray(cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB))[0]
    return colours


def hex_palette(count: int) -> list[str]:
    """The same as `#rrggbb`."""
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette(count).tolist()] if count else []
