"""Edits by a generator: every mask is a square that the generator looks at, and what it paints is laid back in.

By default a square is painted alone, and what an image becomes depends on its own row. Where squares of different
images share a batch, it is always full (the last one is filled up with repetitions), so that every square goes through
the same kernels; on a CPU with several threads its place in the batch still shows in the last bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io import rle
from ovseg_batch.io.pictures import Picture
from ovseg_batch.methods.blending import Frame, blend, feathered, frame_around, seamless
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.diffusion import Inpainter, Request, seed_of
from ovseg_batch.settings import Config
from ovseg_batch.stages.edit.plain import refuse_everything, region_of
from ovseg_batch.stages.edit.plan import STEERED, InpaintParameters
from ovseg_batch.stages.edit.source import Opened
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.types import ImageRow

Array = np.ndarray[Any, Any]

BEHIND = "background"  # what `remove` asks for unless the settings say
AHEAD = 4  # batches that images may run ahead of one with many masks; finished ones wait for it in memory


@dataclass(slots=True)
class Canvas:
    """An image while it is painted: `todo` are the groups of masks that wait, each of one label or of none."""

    row: ImageRow
    opened: Opened
    pixels: Array
    todo: list[tuple[str, list[bytes]]]
    number: int
    prompts: list[str] = field(default_factory=list)
    failure: RowError | None = None

    @property
    def picture(self) -> Picture:
        given = self.opened.picture
        return Picture(self.pixels, given.alpha, given.icc, given.exif)


@dataclass(frozen=True, slots=True)
class _Task:
    """One square of a canvas, where in it the painting may show, and the pixels that are not hidden from it."""

    canvas: Canvas
    frame: Frame
    square: Array
    region: Array
    known: Array
    request: Request


class Painter:
    """Paints canvases with a loaded pipeline, several at a time."""

    def __init__(self, inpainter: Inpainter, parameters: InpaintParameters, config: Config, keeps: bool) -> None:
        self._inpainter, self._parameters, self._config, self._keeps = inpainter, parameters, config, keeps
        self._size = parameters.size
        self._batch = BatchSize(config.inpaint.batch_size, "squares")
        self._canvases = 0

    def canvas(self, row: ImageRow, opened: Opened) -> Canvas:
        """An image that is to be painted."""
        masks = opened.masks
        if self._keeps or not masks:
            todo = [("", [counts for _, counts in masks])] if masks else []
        elif self._config.edit.together:
            labels = dict.fromkeys(label for label, _ in masks)
            todo = [(label, [counts for name, counts in masks if name == label]) for label in labels]
        else:
            todo = [(label, [counts]) for label, counts in masks]
        self._canvases += 1
        return Canvas(row, opened, opened.picture.pixels.copy(), todo, self._canvases)

    def run(self, canvases: Iterator[Canvas]) -> Iterator[Canvas]:
        """Paint them; each is given back when nothing waits in it, or with its failure."""
        active: list[Canvas] = []
        together = self._config.inpaint.batch_size
        while True:
            while len(active) < together and (not active or active[-1].number - active[0].number < AHEAD * together):
                new = next(canvases, None)
                if new is None:
                    break
                active.append(new)
            if not active:
                return
            self._paint([task for canvas in active if canvas.todo and (task := self._begin(canvas)) is not None])
            yield from (canvas for canvas in active if canvas.failure or not canvas.todo)
            active = [canvas for canvas in active if not canvas.failure and canvas.todo]

    def _begin(self, canvas: Canvas) -> _Task | None:
        """The next square of a canvas; None, and the canvas has failed, where it cannot be painted."""
        label, counts = canvas.todo.pop(0)
        try:
            return self._task(canvas, label, counts)
        except RowError as error:
            canvas.failure = error
            return None

    def _task(self, canvas: Canvas, label: str, counts: list[bytes]) -> _Task:
        edit = self._config.edit
        prompt = self._prompt(canvas.row, label)
        shape = canvas.pixels.shape[:2]
        region = region_of(counts, shape, edit)
        if self._keeps:
            region = ~rle.union(counts, *shape)
        if not region.any():
            raise RowError(FailureCode.NO_EDIT, "what is kept covers the whole image: nothing is left to change")
        frame = frame_around(region, self._config.inpaint.context, self._size)
        if edit.mode != "style":
            refuse_everything(frame.cut(region))
        hidden = region
        if edit.mode == "remove" and canvas.todo:  # what will go as well is nothing to go by
            hidden = region | region_of([one for _, group in canvas.todo for one in group], shape, edit)
        square, region, hidden = (frame.cut(part) for part in (canvas.pixels, region, hidden))
        canvas.prompts.append(prompt)
        seed = canvas.row.extra.get("seed")
        request = Request(
            self._resized(square),
            cv2.resize(hidden.astype(np.float32), (self._size, self._size), interpolation=cv2.INTER_AREA) > 0,
            prompt,
            edit.negative_prompt.replace("{label}", label),
            seed_of(canvas.row.key, edit.seed if seed is None else int(seed), len(canvas.prompts)),
        )
        return _Task(canvas, frame, square, region, ~hidden, request)

    def _prompt(self, row: ImageRow, label: str) -> str:
        """What to paint: the row's own words, the label's, the run's, or what the mode means."""
        edit = self._config.edit
        own = str(row.extra.get("edit_prompt") or "")
        words = (own or edit.prompts.get(label, "") or edit.prompt).replace("{label}", label).strip()
        if words or edit.mode not in STEERED:
            return words or BEHIND
        raise RowError(FailureCode.NO_EDIT, f"{edit.mode} has no prompt for {label or 'it'}: neither row nor settings")

    def _resized(self, square: Array) -> Array:
        eight = square if square.dtype == np.uint8 else (square >> 8).astype(np.uint8)
        how = cv2.INTER_AREA if square.shape[0] > self._size else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(eight, (self._size, self._size), interpolation=how))

    def _paint(self, tasks: list[_Task]) -> None:
        if not tasks:
            return
        results = split_on_failure(self._generate, tasks, self._batch)
        for task, painted in zip(tasks, results, strict=True):
            if isinstance(painted, RowError):
                task.canvas.failure = painted
            elif painted is None:
                task.canvas.failure = RowError(FailureCode.BLOCKED, "the model's safety checker kept the picture back")
            else:
                self._lay_in(task, painted)

    def _generate(self, tasks: Sequence[_Task]) -> list[Array | None]:
        """Return what the generator paints. Batches are filled up, so that all squares run through the same kernels."""
        brush, requests = self._parameters, [task.request for task in tasks]
        filled = requests + requests[-1:] * (self._batch.items - len(requests))
        painted = self._inpainter.paint(filled, brush.steps, brush.guidance, brush.strength)
        return painted[: len(requests)]

    def _lay_in(self, task: _Task, painted: Array) -> None:
        side = task.frame.side
        how = cv2.INTER_AREA if side < self._size else cv2.INTER_CUBIC
        large = cv2.resize(painted, (side, side), interpolation=how) * np.iinfo(task.square.dtype).max
        if self._config.edit.mode == "remove":
            large = seamless(task.square, large, task.known)
        weight = feathered(task.region, self._config.edit.feather)
        task.frame.put(task.canvas.pixels, blend(task.square, large, weight))
