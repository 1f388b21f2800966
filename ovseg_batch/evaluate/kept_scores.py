"""The scores of each shard, kept beside the masks. They count until the images, the masks or the truth change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovseg_batch.io.atomic import atomic_path
from ovseg_batch.io.hashing import ContentDigest
from ovseg_batch.types.arrays import AnyArray

log = logging.getLogger(__name__)

DIGEST, MASKS, TRUTH = "digest", "masks digest", "truth digest"  # names of arrays that each hold one text


@dataclass(frozen=True, slots=True)
class KeptScores:
    """The folder of one run's scores on one data set: an NPZ per shard."""

    folder: Path

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npz"

    def read(self, shard: int, masks: str, truth: str | None = None) -> dict[str, AnyArray] | None:
        """Return the arrays of a shard's score, or None where there is none that counts.

        Args:
            masks: digest of the shard's images and masks as they are now.
            truth: digest of the truth of its images. None: any.
        """
        path = self.path(shard)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            whole = str(arrays.pop(DIGEST)) == _digest(arrays)
        except FileNotFoundError:
            return None
        except Exception as error:  # the readers of zip and NPY raise many classes
            log.debug("%s: %s", path, error)
            whole = False
        if not whole:
            log.warning("The kept scores %s are damaged or of an earlier version. The shard is scored again.", path)
            return None
        known = str(arrays.pop(MASKS)), str(arrays.pop(TRUTH))
        return arrays if known == (masks, known[1] if truth is None else truth) else None

    def write(self, shard: int, masks: str, truth: str, arrays: Mapping[str, AnyArray]) -> None:
        """Write the arrays of a shard's score. The arguments are those of `read`."""
        whole = {**arrays, MASKS: np.array(masks), TRUTH: np.array(truth)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path(shard)) as temporary, temporary.open("wb") as file:
            np.savez(file, **whole, **{DIGEST: np.array(_digest(whole))})  # type: ignore[arg-type]


def _digest(arrays: Mapping[str, AnyArray]) -> str:
    digest = ContentDigest()
    for name, array in arrays.items():
        digest.add([name, str(array.dtype), str(array.shape)], array)
    return str(digest)
