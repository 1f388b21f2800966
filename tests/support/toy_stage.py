"""An answer stage that draws a disc for every word: what a new stage has to bring along, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg_batch.cli import main
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.voting import MaskCandidate
from ovseg_batch.settings import Config
from ovseg_batch.stages import base, implementations, registry
from ovseg_batch.stages.answer import Answer, Painting, annotate
from ovseg_batch.stages.base import Stage, Upstream, done, ready
from ovseg_batch.stages.plans import ClassifyPlan
from ovseg_batch.stages.resolved import Resolved
from ovseg_batch.types import ImageRow, RowResult


class DiscStage(Stage):
    """Draws discs of a radius that grows with the index of the word, around the image's centre."""

    name, columns = "discs", ClassifyPlan.columns
    needs = ("encode",)

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return DiscStage.needs

    def __init__(self, run: Resolved) -> None:
        self._vocabulary, self._paint = run.vocabulary, run.config.painting

    def inputs(self) -> dict[str, Any]:
        return {"classes": list(self._vocabulary.names), "paint": self._paint}

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        todo, failures = ready(rows, upstream, self.needs)
        yield from failures
        for row in todo:
            values = upstream["encode"].values(row.row)
            size = values["height"], values["width"]
            discs = [disc(size, 5 * number) for number, _ in enumerate(self._vocabulary.names, start=1)]
            found = [MaskCandidate(k, int(m.sum()), None, 1, 1, 1 / (k + 1), margin=1) for k, m in enumerate(discs)]
            answer = Answer(size, found, [PlacedMask.crop(one) for one in discs].__getitem__)
            annotations = annotate(answer, self._vocabulary, Painting(1, by_score=True, paint=self._paint))
            yield done(row, {"height": size[0], "width": size[1], "annotations": annotations})


def disc(size: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    """Return a disc around the centre of an image of (H, W)."""
    y, x = np.ogrid[: size[0], : size[1]]
    return np.hypot(y - size[0] / 2, x - size[1] / 2) <= radius


#: the tables that name a stage, and the entry of this one
ENTRIES: tuple[tuple[dict[str, Any], str, Any], ...] = (
    (registry.PLANS, DiscStage.name, DiscStage),
    (implementations.STAGES, DiscStage.name, DiscStage),
    (base.ANSWER_STAGES, "discs", DiscStage.name),
)


def run_command(arguments: list[str]) -> None:
    """Run `ovseg-batch` with the stage, in a process of its own."""
    for table, key, value in ENTRIES:
        table[key] = value
    main(arguments, prog_name="ovseg-batch")
