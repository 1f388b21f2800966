"""Open-vocabulary segmentation of folders: compute masks of all images for a list of words."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ovseg_batch.version import __version__

if TYPE_CHECKING:
    from ovseg_batch.api.evaluation import Compared, Evaluation, compare
    from ovseg_batch.api.records import Failure, Mask, SegmentedImage
    from ovseg_batch.api.runs import Run, run
    from ovseg_batch.api.segmenter import Segmenter, segment
    from ovseg_batch.errors import FailureCode, Interrupted, OvsegError, RowError, UsageError
    from ovseg_batch.export.exporting import Exported, Options
    from ovseg_batch.export.selection import Selection

__all__ = [
    "Compared",
    "Evaluation",
    "Exported",
    "Failure",
    "FailureCode",
    "Interrupted",
    "Mask",
    "Options",
    "OvsegError",
    "RowError",
    "Run",
    "SegmentedImage",
    "Segmenter",
    "Selection",
    "UsageError",
    "__version__",
    "compare",
    "run",
    "segment",
]

#: modules of the names above, which are imported at the first access
_MODULES = {
    "api.evaluation": ("Compared", "Evaluation", "compare"),
    "api.records": ("Failure", "Mask", "SegmentedImage"),
    "api.runs": ("Run", "run"),
    "api.segmenter": ("Segmenter", "segment"),
    "errors": ("FailureCode", "Interrupted", "OvsegError", "RowError", "UsageError"),
    "export.selection": ("Selection",),
    "export.exporting": ("Exported", "Options"),
}


def __getattr__(name: str) -> Any:
    """Import a name of the API at its first access, so that the command line does not import it."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"ovseg_batch.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
