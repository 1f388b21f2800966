"""Edit images by their masks.

`cutout`, `fill`, `mask`, `crop` and `erase` need no generator; `remove`, `replace` and `style` do. Each image gives one
file, or one for each mask, in the folders of the input.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from ovseg_batch.errors import DeviceLost, FailureCode, OvsegError, RowError, is_out_of_memory
from ovseg_batch.io.ahead import work_ahead
from ovseg_batch.io.images import read_image
from ovseg_batch.io.pictures import SUFFIXES, Picture, encode_picture, left_out, part_name, unique_name
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.diffusion import Inpainter
from ovseg_batch.models.precision import precision
from ovseg_batch.models.vitmatte import VitMatte
from ovseg_batch.stages.base import Stage, Upstream, done, failed, read_limits, ready
from ovseg_batch.stages.edit.generated import EditState, GeneratedEdits
from ovseg_batch.stages.edit.matting import Matting
from ovseg_batch.stages.edit.plain import plain_edit
from ovseg_batch.stages.edit.plan import EditPlan
from ovseg_batch.stages.edit.source import EditSource, read_source
from ovseg_batch.types import ImageRow, RowResult, Unchanged
from ovseg_batch.types.arrays import Pixels
from ovseg_batch.units import counted

log = logging.getLogger(__name__)

EXAMPLES = 3  # how many files a note names
PEAK = 24  # bytes a pixel while an image is edited
MATTE_PEAK = 12  # bytes a pixel in addition while a network computes alpha


class EditStage(EditPlan, Stage):
    """Writes the edited images."""

    def setup(self, device: str) -> None:
        fill, inpaint = self._settings.fill, self._inpaint
        self._background: Pixels | None = None
        self._generator: GeneratedEdits | None = None
        self._matte: Matting | None = None
        if fill.kind == "image" and fill.image:
            self._background = read_image(fill.image, read_limits(self._run))
        if self._matte_spec is not None:
            kind = precision(self._run.precision, device, large=True)
            self._matte = Matting(VitMatte.load(self._matte_spec, resolve_device(device), kind))
        if self._spec is not None and self._parameters is not None:
            kind = precision(self._run.precision, device)
            inpainter = Inpainter.load(
                self._spec, resolve_device(device), kind, inpaint.offload, inpaint.attention_slicing
            )
            self._generator = GeneratedEdits(inpainter, self._parameters, self._settings, inpaint, self._keeps)

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        self._left_out: dict[str, set[str]] = {}
        run, masks = self._run, upstream[self.needs[0]]
        limits = read_limits(run)
        if self._generator is None:

            def edited(row: ImageRow, image: Image.Image) -> RowResult:
                return self._edited(row, self._open(row, image, masks))

            peak = PEAK + (0 if self._matte is None else MATTE_PEAK)
            for row, done in work_ahead(todo, edited, run.decode_threads, run.decode_bytes, limits, peak):
                yield failed(row, done.code, done.message) if isinstance(done, RowError) else done
        else:
            sources = work_ahead(
                todo, lambda row, image: self._open(row, image, masks), run.decode_threads, run.decode_bytes, limits
            )
            yield from self._generated(self._generator, sources)

        for what, names in sorted(self._left_out.items()):
            some = f"{', '.join(sorted(names)[:EXAMPLES])}{', …' if len(names) > EXAMPLES else ''}"
            log.warning("%s had %s; the edited file is written without (%s)", counted(len(names), "image"), what, some)

    def _encoded(self, row: ImageRow, picture: Picture, source: EditSource) -> bytes:
        for what in left_out(picture, source.encoding):
            self._left_out.setdefault(what, set()).add(row.file_name)
        return encode_picture(picture, source.encoding)

    def _open(self, row: ImageRow, image: Image.Image, upstream: Upstream) -> EditSource:
        return read_source(row, image, upstream.values(row.row)["annotations"], self._settings, self._chosen)

    def _edited(self, row: ImageRow, source: EditSource) -> RowResult:
        if not source.masks:
            return self._empty(row, source)
        edit, picture = self._settings, source.picture
        groups = [[mask] for mask in source.masks] if edit.apart else [source.masks]
        suffix = SUFFIXES[source.encoding.format][0]
        files: dict[str, bytes] = {}
        changed = False
        with costing_a_row():
            for number, group in enumerate(groups, start=1):
                counts = [counts for _, counts in group]
                made, differs = self._plain(picture, counts)
                changed |= differs
                name = part_name(unique_name(row), number, group[0][0], suffix) if edit.apart else source.name
                files[name] = self._encoded(row, made, source)
        return self._answer(row, source, files, [], None if changed else Unchanged.WHOLE_IMAGE)

    def _plain(self, picture: Picture, counts: Sequence[bytes]) -> tuple[Picture, bool]:
        context, keeps = self._inpaint.context, self._keeps
        return plain_edit(picture, counts, self._settings, context, keeps, self._background, self._matte)

    def _empty(self, row: ImageRow, source: EditSource) -> RowResult:
        """Return the result of an image without a mask of the chosen labels."""
        edit = self._settings
        if self._on_empty == "fail":
            labels = ", ".join(sorted(self._chosen))
            return failed(row, FailureCode.NO_EDIT, f"no mask of {labels} (edit.on_empty: fail)")
        picture = source.picture
        with costing_a_row():
            if edit.mode == "mask":
                picture = Picture(np.full(picture.pixels.shape[:2], 0 if self._keeps else 255, np.uint8))
            elif self._on_empty == "fill":
                picture, _ = self._plain(picture, [])
            files = {} if self._on_empty == "skip" else {source.name: self._encoded(row, picture, source)}
        return self._answer(row, source, files, [], Unchanged.NO_MASK)

    def _generated(
        self, generator: GeneratedEdits, sources: Iterator[tuple[ImageRow, EditSource | RowError]]
    ) -> Iterator[RowResult]:
        failures: list[RowResult] = []

        def states() -> Iterator[EditState]:
            for row, one in sources:
                if isinstance(one, RowError):
                    failures.append(failed(row, one.code, one.message))
                else:
                    yield generator.state(row, one)

        for state in generator.run(states()):
            while failures:  # in time: results that come out of order wait in memory
                yield failures.pop(0)
            try:
                yield self._painted(state)
            except RowError as error:
                yield failed(state.row, error.code, error.message)
        yield from failures

    def _painted(self, state: EditState) -> RowResult:
        """Return the result of an image whose edit has ended. Raises its failure."""
        if state.failure is not None:
            raise state.failure
        source = state.source
        if not source.masks:
            return self._empty(state.row, source)
        with costing_a_row():
            content = self._encoded(state.row, state.picture, source)
        return self._answer(state.row, source, {source.name: content}, state.prompts)

    def _answer(
        self,
        row: ImageRow,
        source: EditSource,
        files: dict[str, bytes],
        prompts: list[str],
        unchanged: Unchanged | None = None,
    ) -> RowResult:
        height, width = source.picture.pixels.shape[:2]
        values = {
            "height": height,
            "width": width,
            "masks": len(source.masks),
            "files": list(files),
            "labels": [label for label, _ in source.masks],
            "prompts": prompts,
            "unchanged": unchanged,
        }
        return done(row, values, files=files)


@contextlib.contextmanager
def costing_a_row() -> Iterator[None]:
    """Convert any error of an edit into a RowError. No file is written here."""
    try:
        yield
    except (OvsegError, RowError, DeviceLost):
        raise
    except Exception as error:
        code = FailureCode.OUT_OF_MEMORY if is_out_of_memory(error) else FailureCode.INTERNAL
        raise RowError(code, f"{type(error).__name__}: {error}") from None
