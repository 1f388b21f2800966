"""One colour per label, equal in all outputs."""

from __future__ import annotations

import numpy as np

from ovseg_batch.types.arrays import Pixels


def palette(count: int) -> Pixels:
    """Return colours (count, 3) uint8 RGB: golden-ratio steps around the hue circle, at three levels of saturation."""
    import cv2  # imported here: it needs 40 MB, and opening a run needs no colours

    steps = np.arange(count)
    hsv = np.stack([(steps * 179 * 0.618) % 180, 150 + 60 * (steps % 2), 235 - 60 * (steps % 3 == 2)], axis=1)
    colours: Pixels = np.asarray(cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB))[0]
    return colours


def hex_palette(count: int) -> list[str]:
    """Return the colours of `palette` as `#rrggbb`."""
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette(count).tolist()] if count else []
