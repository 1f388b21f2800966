"""The regions of an image: the masks of `propose`, painted over each other."""

from __future__ import annotations

from collections.abc import Sequence

from ovseg_batch.io import rle
from ovseg_batch.methods.proposals import paint_regions
from ovseg_batch.settings import CORRCLIP, Config
from ovseg_batch.types import Proposal
from ovseg_batch.types.arrays import SegmentMap


def region_map(proposals: Sequence[Proposal], size: tuple[int, int], config: Config) -> SegmentMap:
    """Return the number of each pixel's region, 0 where there is no mask.

    Small masks cover large ones under `dense.attention: corrclip`. Otherwise large masks cover small ones, as in
    zdk258/CorrCLIP, `CorrCLIPv1/corrclip_segmentor.py`. Region maps of `propose.masks` keep their numbers' order.

    Args:
        proposals: masks of the image.
        size: (H, W) in pixels.
        config: settings of the run.

    Returns:
        (H, W) int32.
    """
    if config.propose.masks is None:
        sign = -1 if config.dense.attention == CORRCLIP else 1
        proposals = sorted(proposals, key=lambda proposal: sign * proposal.area)
    return paint_regions((rle.decode_placed(proposal.rle, *size) for proposal in proposals), size)
