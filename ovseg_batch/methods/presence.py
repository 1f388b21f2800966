"""Decide which labels are present in an image, by hysteresis thresholds on the dense map.

With few labels, a class wins pixels of other objects by a small margin. Where the class is present, a large share of
its pixels wins by a large margin. Therefore, prompts start in sure pixels only. A mask keeps its class if enough of its
pixels are sure, but its outline follows all pixels of the class. Source of the two thresholds: Canny, A Computational
Approach to Edge Detection, 1986, section VIII. The margin is measured at CLIP's logit scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.types.arrays import ClassMap, Mask

# level of a pixel: its class exceeds the background by the margin, or by `CLEAR_MARGIN` times the margin
SURE, CLEAR = 1, 2
CLEAR_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Presence:
    """The evidence of its class that a mask needs.

    Attributes:
        labels: (H, W) int16, class of the sure pixels, `UNLABELLED` elsewhere.
        clear: (H, W) bool, whether the class exceeds the background by `CLEAR_MARGIN` margins.
        share: least share of sure pixels among the pixels of the class in a mask, in [0, 1].
        alone: the same for a component of the dense map outside of all masks.
        alone_area: least area in pixels of such a component.
    """

    labels: ClassMap
    clear: Mask
    share: float
    alone: float
    alone_area: int

    def shows(self, classes: ClassMap, mask: PlacedMask, label: int) -> bool:
        """Return whether enough pixels of a class in a mask are sure.

        Args:
            classes: (H, W) int16 class of every pixel.
            mask: the mask in its bounding box.
            label: the mask's class.
        """
        sure, all_of = (np.count_nonzero(labels[mask.place][mask.pixels] == label) for labels in (self.labels, classes))
        return bool(sure >= self.share * all_of)
