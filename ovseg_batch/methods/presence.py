"""Which labels are in an image: hysteresis thresholds on the dense map.

A class with few competitors wins pixels that show something else, by a small margin. Where it is present, a large part
of its pixels wins by a large one. So prompts start in sure pixels alone, and a mask keeps its class where enough of it
is sure, while its outline follows all pixels of the class. Source of the two thresholds: Canny, A Computational
Approach to Edge Detection, 1986, section VIII; the margin is measured at CLIP's own logit scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SURE, CLEAR = 1, 2  # levels of a pixel: its class exceeds the background by the margin, and by `CLEAR_MARGIN` of them
CLEAR_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Presence:
    """What a mask has to show of its class.

    Attributes:
        labels: (H, W) int16 class of the sure pixels, `UNLABELLED` elsewhere.
        clear: (H, W) bool, whether the class exceeds the background by far.
        share: of the pixels of its class in a mask that must be sure, in [0, 1].
        alone: the same of a piece of the dense map that no mask has claimed.
        alone_area: pixels that such a piece must have.
    """

    labels: Array
    clear: Array
    share: float
    alone: float
    alone_area: int

    def shows(self, classes: Array, mask: Array, label: int) -> bool:
        """Return whether enough pixels of a class in a mask are sure.

        Args:
            classes: (H, W) int16 class of every pixel.
            mask: (H, W) bool.
            label: the mask's class.
        """
        sure = np.count_nonzero(self.labels[mask] == label)
        return bool(sure >= self.share * np.count_nonzero(classes[mask] == label))
