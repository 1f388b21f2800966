"""The dense map of an image on a coarse grid: the best class of each cell and the runner-up, and those of each mask."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ovseg_batch.config import load_config
from ovseg_batch.errors import OvsegError
from ovseg_batch.io import rle
from ovseg_batch.methods.small_masks import small_mask
from ovseg_batch.methods.vocabulary import Vocabulary
from ovseg_batch.settings import SPLICED
from ovseg_batch.stages.registry import resolve, stage_names
from ovseg_batch.stages.upstream import CommittedShard
from ovseg_batch.types import Annotation
from ovseg_batch.types.arrays import Floats
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import StageStore

GRID = 128  # cells on the longer side
DENSE = "dense"
WHOLE = 1 << 30  # pixels; a window of this side is the whole image


@dataclass(frozen=True)
class DenseView:
    """The dense maps of a run, if they can be read.

    Attributes:
        reason: a sentence on why there are no maps. Empty if there are maps.
        names: classes of the maps.
        text: (Q, D) features of the queries, where the stage has kept features of the patches.
    """

    reason: str = ""
    names: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    logit_scale: float = 1.0
    window: int = WHOLE
    stride: int = WHOLE
    patch: int = 16
    spliced: bool = False
    text: Any = field(default=None, repr=False)

    @classmethod
    def open(cls, results: Results) -> DenseView:
        """Return the view of a run. No weights are loaded unless the run keeps features instead of similarities."""
        if not any(store.stage == DENSE for store in results.stores):
            return cls(
                "The dense map is not kept. Runs with `dense.cache: logits` or `features` keep it; "
                "methods without a dense map have none."
            )
        try:
            return cls._of_config(results)
        except OvsegError as error:
            return cls(f"The dense map cannot be read here: {error}")

    @classmethod
    def _of_config(cls, results: Results) -> DenseView:
        config = load_config(results.workdir.config, environment={})
        whole = resolve(config)
        run = next((part for part in whole.parts if DENSE in stage_names(part.config)), whole)
        dense, vocabulary = run.config.dense, run.vocabulary
        spliced = dense.attention == SPLICED
        text = None
        if dense.cache == "features":
            import torch  # imported here: other runs need no model library to open the view

            from ovseg_batch.models.encoders import load_encoder
            from ovseg_batch.stages.text import word_features

            text = word_features(run.words, load_encoder(run.clip, torch.device("cpu"), "fp32"), run.clip)
        window, stride = (WHOLE, WHOLE) if spliced else (run.window, run.stride)
        return cls("", vocabulary.names, vocabulary, dense.logit_scale, window, stride, run.patch, spliced, text)

    def read(self, store: StageStore, shard: int) -> CommittedShard | None:
        """Return the maps of a shard; None if the stage has none, or the shard is not committed."""
        if self.reason or store.read_commit(shard, outdated=True) is None:
            return None
        return CommittedShard(store, shard)


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of the grid of an image of (H, W) pixels."""
    scale = min(1.0, GRID / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def cells_of(probabilities: Floats) -> list[Any]:
    """Return rows, columns, and the cells in runs: length, best class, runner-up, and so on along the rows."""
    classes, h, w = probabilities.shape
    left = probabilities.reshape(classes, -1).copy()
    best = left.argmax(axis=0)
    left[best, np.arange(h * w)] = -1
    second = left.argmax(axis=0) if classes > 1 else best
    both = best * classes + second
    edges = np.flatnonzero(np.diff(both, prepend=-1))
    lengths = np.diff(edges, append=len(both))
    runs = zip(lengths.tolist(), best[edges].tolist(), second[edges].tolist(), strict=True)
    return [h, w, list(itertools.chain.from_iterable(runs))]


def classes_within(
    annotations: Sequence[Annotation], size: tuple[int, int], probabilities: Floats
) -> list[list[tuple[int, int]]]:
    """Return the two classes of the highest mean probability within each mask, with it in thousandths."""
    shape = (probabilities.shape[1], probabilities.shape[2])
    found = []
    for one in annotations:
        runs = rle.column_runs(one.rle, *size)
        placed = small_mask(runs, shape)
        inside = probabilities[(slice(None), *placed.place)][:, placed.pixels]
        if not inside.shape[1]:  # smaller than a cell: the cell of its centre
            x0, y0, x1, y1 = runs.box
            row, column = (y0 + y1) * shape[0] // (2 * size[0]), (x0 + x1) * shape[1] // (2 * size[1])
            inside = probabilities[:, row, column, None]
        means = inside.mean(axis=1)
        first = np.argsort(-means, kind="stable")[:2]
        found.append([(int(k), round(1000 * float(means[k]))) for k in first])
    return found
