"""Alpha of an image by a matting network, tile by tile."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from ovseg_batch.errors import RowError
from ovseg_batch.methods.matte_tiles import Tile, blended, tiles_of
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.vitmatte import VitMatte
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.types.arrays import Numbers, Pixels


class Matting:
    """Computes alpha with a loaded network. Images are edited in threads, and the network takes one at a time.

    A tile is computed alone, so a matte does not depend on other images. A tile that does not fit into memory is
    computed again after cached memory is released, and then fails its image.
    """

    def __init__(self, model: VitMatte) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._batch = BatchSize(1, "tiles")

    def __call__(self, image: Pixels, trimap: Pixels) -> Numbers:
        """Return alpha (H, W) float32 in [0, 1]. It is valid at the unknown pixels of the trimap.

        Args:
            image: (H, W, 3) uint8 RGB.
            trimap: (H, W) uint8: 255 inside, 0 outside, 128 unknown.

        Raises:
            RowError: the network failed on a tile, or the tile does not fit into memory.
            DeviceLost: the GPU has become unusable for this process.
        """
        tiles, shape = tiles_of(trimap), (trimap.shape[0], trimap.shape[1])
        if not tiles:
            return np.zeros(shape, np.float32)

        def compute(some: Sequence[Tile]) -> list[Numbers]:
            return [self._model.alpha(image[tile], trimap[tile]) for tile in some]

        with self._lock:
            found = split_on_failure(compute, tiles, self._batch)
        failure = next((one for one in found if isinstance(one, RowError)), None)
        if failure is not None:
            raise failure
        return blended([one for one in found if not isinstance(one, RowError)], tiles, shape)
