"""Edits by a generator, which receives a square around every mask. Its output is blended into the image.

By default a batch holds one square, so a result depends on its own row alone. Larger batches hold squares of several
images. The last batch is padded with repetitions, so that every square runs through the same kernels. On a CPU with
several threads the last bits of a result still depend on its place in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io import rle
from ovseg_batch.io.pictures import Picture
from ovseg_batch.methods.blending import Frame, blend, feathered, frame_around, seamless
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.diffusion import Inpainter, Request, seed_of
from ovseg_batch.settings import EditConfig, InpaintConfig
from ovseg_batch.settings.edit_modes import EDIT_MODES
from ovseg_batch.stages.edit.plain import refuse_everything, region_of
from ovseg_batch.stages.edit.plan import InpaintParameters
from ovseg_batch.stages.edit.source import EditSource
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.types import ImageRow
from ovseg_batch.types.arrays import DeepPixels, Floats, Mask, Numbers, Pixels

BEHIND = "background"  # the prompt of `remove` where the settings have none
AHEAD = 4  # batches by which images may overtake one with many masks; finished images wait for it in memory


@dataclass(slots=True)
class EditState:
    """An image during its edit.

    Attributes:
        todo: groups of masks that are not edited yet: a label, empty for all labels, and the RLE counts of the masks.
    """

    row: ImageRow
    source: EditSource
    pixels: DeepPixels
    todo: list[tuple[str, list[bytes]]]
    number: int
    prompts: list[str] = field(default_factory=list)
    failure: RowError | None = None

    @property
    def picture(self) -> Picture:
        given = self.source.picture
        return Picture(self.pixels, given.alpha, given.icc, given.exif)


@dataclass(frozen=True, slots=True)
class _Task:
    """One square of an image for the generator.

    Attributes:
        region: pixels that the output replaces.
        known: pixels that the generator sees.
    """

    state: EditState
    frame: Frame
    square: DeepPixels
    region: Mask
    known: Mask
    request: Request


class GeneratedEdits:
    """Edits several images at a time with a loaded pipeline."""

    def __init__(
        self,
        inpainter: Inpainter,
        parameters: InpaintParameters,
        edit: EditConfig,
        inpaint: InpaintConfig,
        keeps: bool,
    ) -> None:
        self._inpainter, self._parameters, self._keeps = inpainter, parameters, keeps
        self._edit, self._inpaint = edit, inpaint
        self._size = parameters.size
        self._batch = BatchSize(inpaint.batch_size, "squares")
        self._states = 0

    def state(self, row: ImageRow, source: EditSource) -> EditState:
        """Return the state of an image before its edit."""
        masks = source.masks
        if self._keeps or not masks:
            todo = [("", [counts for _, counts in masks])] if masks else []
        elif self._edit.together:
            labels = dict.fromkeys(label for label, _ in masks)
            todo = [(label, [counts for name, counts in masks if name == label]) for label in labels]
        else:
            todo = [(label, [counts]) for label, counts in masks]
        self._states += 1
        return EditState(row, source, source.picture.pixels.copy(), todo, self._states)

    def run(self, states: Iterator[EditState]) -> Iterator[EditState]:
        """Edit all groups of masks of every image. Yields each image once it is finished or has failed."""
        active: list[EditState] = []
        together = self._inpaint.batch_size
        while True:
            while len(active) < together and (not active or active[-1].number - active[0].number < AHEAD * together):
                new = next(states, None)
                if new is None:
                    break
                active.append(new)
            if not active:
                return
            self._paint([task for state in active if state.todo and (task := self._begin(state)) is not None])
            yield from (state for state in active if state.failure or not state.todo)
            active = [state for state in active if not state.failure and state.todo]

    def _begin(self, state: EditState) -> _Task | None:
        """Return the next square of an image. None: the image has failed, and its state holds why."""
        label, counts = state.todo.pop(0)
        try:
            return self._task(state, label, counts)
        except RowError as error:
            state.failure = error
            return None

    def _task(self, state: EditState, label: str, counts: list[bytes]) -> _Task:
        edit = self._edit
        prompt = self._prompt(state.row, label)
        shape = state.pixels.shape[:2]
        region = region_of(counts, shape, edit)
        if self._keeps:
            region = ~rle.union(counts, *shape)
        if not region.any():
            raise RowError(FailureCode.NO_EDIT, "what is kept covers the whole image: nothing is left to change")
        frame = frame_around(region, self._inpaint.context, self._size)
        if edit.mode != "style":
            refuse_everything(frame.cut(region))
        hidden = region
        if edit.mode == "remove" and state.todo:  # masks that will also be removed must not serve as context
            hidden = region | region_of([one for _, group in state.todo for one in group], shape, edit)
        square, region, hidden = frame.cut(state.pixels), frame.cut(region), frame.cut(hidden)
        state.prompts.append(prompt)
        seed = state.row.extra.get("seed")
        request = Request(
            self._resized(square),
            cv2.resize(hidden.astype(np.float32), (self._size, self._size), interpolation=cv2.INTER_AREA) > 0,
            prompt,
            edit.negative_prompt.replace("{label}", label),
            seed_of(state.row.key, edit.seed if seed is None else int(seed), len(state.prompts)),
        )
        return _Task(state, frame, square, region, ~hidden, request)

    def _prompt(self, row: ImageRow, label: str) -> str:
        """Return the prompt: that of the row, the label, the run or the mode, whichever is given first."""
        edit = self._edit
        own = str(row.extra.get("edit_prompt") or "")
        words = (own or edit.prompts.get(label, "") or edit.prompt).replace("{label}", label).strip()
        if words or not EDIT_MODES[edit.mode].needs_prompt:
            return words or BEHIND
        raise RowError(FailureCode.NO_EDIT, f"{edit.mode} has no prompt for {label or 'it'}: neither row nor settings")

    def _resized(self, square: DeepPixels) -> Pixels:
        eight = square if square.dtype == np.uint8 else (square >> 8).astype(np.uint8)
        how = cv2.INTER_AREA if square.shape[0] > self._size else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(eight, (self._size, self._size), interpolation=how))

    def _paint(self, tasks: list[_Task]) -> None:
        if not tasks:
            return
        results = split_on_failure(self._generate, tasks, self._batch)
        for task, painted in zip(tasks, results, strict=True):
            if isinstance(painted, RowError):
                task.state.failure = painted
            elif painted is None:
                task.state.failure = RowError(FailureCode.BLOCKED, "the model's safety checker kept the picture back")
            else:
                self._blend_in(task, painted)

    def _generate(self, tasks: Sequence[_Task]) -> list[Floats | None]:
        """Return what the generator paints. Batches are filled up, so that all squares run through the same kernels."""
        parameters, requests = self._parameters, [task.request for task in tasks]
        filled = requests + requests[-1:] * (self._batch.items - len(requests))
        painted = self._inpainter.paint(filled, parameters.steps, parameters.guidance, parameters.strength)
        return painted[: len(requests)]

    def _blend_in(self, task: _Task, painted: Floats) -> None:
        side = task.frame.side
        how = cv2.INTER_AREA if side < self._size else cv2.INTER_CUBIC
        top = np.iinfo(task.square.dtype).max
        large: Numbers = np.asarray(cv2.resize(painted, (side, side), interpolation=how), np.float32) * top
        if self._edit.mode == "remove":
            large = seamless(task.square, large, task.known)
        weight = feathered(task.region, self._edit.feather)
        task.frame.put(task.state.pixels, blend(task.square, large, weight))
