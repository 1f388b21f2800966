"""Open-vocabulary segmentation of whole folders: a list of words in, masks for every image out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovseg_batch.api import Failure, Mask, Run, SegmentedImage, run

__version__ = "0.1.0"
__all__ = ["Failure", "Mask", "Run", "SegmentedImage", "__version__", "run"]


def __getattr__(name: str) -> Any:
    """The API, when it is asked for: it imports the model libraries, which `status` can do without."""
    if name in __all__:
        from ovseg_batch import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
