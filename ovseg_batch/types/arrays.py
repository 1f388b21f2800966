"""Names for arrays by what they hold. The docstrings of functions and classes state the shapes.

The records in `ovseg_batch.types` do not import this module, so commands that only read records start without NumPy.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]  # images with 8 bits a channel, and maps of at most 256 values
DeepPixels = NDArray[np.uint8 | np.uint16]  # images with 8 or 16 bits a channel
ClassMap = NDArray[np.int16]  # indices of classes; negative where there is none
SegmentMap = NDArray[np.int32]  # numbers of segments; 0 where there is none
Narrow = NDArray[np.uint8 | np.uint16 | np.int32]  # the same in the fewest bytes that hold them
Indices = NDArray[np.int64]  # indices, counts and boxes
Integers = NDArray[np.integer[Any]]
Halves = NDArray[np.float16]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Numbers = NDArray[np.floating[Any]]
AnyArray = NDArray[Any]  # the dtype depends on the name under which the array is stored, or is not known yet

Scalar = TypeVar("Scalar", bound=np.generic)  # for functions whose result has the dtype of their argument
