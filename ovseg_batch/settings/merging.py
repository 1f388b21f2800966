"""Settings of `method: hybrid`: the two sources of masks, and how they are merged."""

from __future__ import annotations

from typing import Literal

from ovseg_batch.settings.section import Section, Share


class MergeConfig(Section):
    """The merge of two methods under `method: hybrid`: one for objects, and `dense`, each with its own settings."""

    things: Literal["detect", "sam3", "proposals"] = "detect"
    """The method that gives the masks of objects. The other one is always `dense`."""
    rule: Literal["kind", "best", "average"] = "kind"
    """`kind`: labels of the kind `thing` have the masks of `merge.things`, and those of the kind `stuff` the masks of
    `dense`. `best` and `average` take the masks of both for every label: of two that show the same, the one with the
    higher confidence, or that of `merge.things` with the mean of both confidences (docs/methods.md)."""
    iou: Share = 0.5
    """IoU from which two masks of a label, one of each method, show the same."""
    agreement: bool = False
    """Lower the confidence of masks that the other method contradicts (docs/confidence.md)."""
    min_area: Share = 0.001
    """A mask that others partly cover is dropped if a smaller share of the image remains of it."""
