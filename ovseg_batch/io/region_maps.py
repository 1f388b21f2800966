"""Read region maps that were made beforehand, in the format of CorrCLIP's authors."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.types.arrays import SegmentMap

MAP_SUFFIX = ".npz"
ARRAY = "instance_mask"


def read_region_map(folder: Path, name: str, size: tuple[int, int]) -> SegmentMap:
    """Read the region map of an image.

    Args:
        folder: folder of the maps.
        name: name of the image, with or without folders and suffix.
        size: (H, W) of the image.

    Returns:
        (H, W) int32, number of the region of each pixel; 0 for none.

    Raises:
        RowError: there is no map for the image, it cannot be read, or it does not fit the image.
    """
    path = folder / f"{Path(name).stem}{MAP_SUFFIX}"
    try:
        with np.load(path, allow_pickle=False) as content:
            found = np.asarray(content[ARRAY])
    except FileNotFoundError:
        raise RowError(FailureCode.MISSING, f"there is no region map {path}") from None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RowError(FailureCode.UNREADABLE, f"{path} has no readable array {ARRAY} ({error})") from None
    if found.shape != size:
        shape = " x ".join(map(str, found.shape))
        raise RowError(FailureCode.MODEL, f"{path} has the shape {shape}, and the image has {size[0]} x {size[1]}")
    if found.dtype.kind not in "iu" or (found.size and found.min() < 0) or (found.size and found.max() > 2**31 - 1):
        raise RowError(FailureCode.MODEL, f"{path} does not hold whole numbers from 0 to 2^31 - 1")
    return found.astype(np.int32)
