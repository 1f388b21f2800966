"""SAM 3 over the images: their tokens, and the masks of every word.

What is kept decides all later thresholds of scores and overlaps, so that they run no model. With kept tokens, other
words need neither the images nor their encoder.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io import rle
from ovseg_batch.io.ahead import decode_ahead
from ovseg_batch.methods.concepts import fused_word, pasted, stored
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.methods.resized_masks import MaskRuns, above
from ovseg_batch.methods.tiles import Box, grid_views, is_cut
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.sam3 import Sam3, WordAnswer
from ovseg_batch.stages.base import Stage, Upstream, WordStage, done, failed, read_limits, ready
from ovseg_batch.stages.earlier import EarlierShard
from ovseg_batch.stages.sam3.found import FoundWord, packed
from ovseg_batch.stages.sam3.plan import Sam3Plan, TokensPlan
from ovseg_batch.stages.sam3.reuse import known_words
from ovseg_batch.stages.splitting import split_on_failure
from ovseg_batch.types import ImageRow, RowResult, WordMask
from ovseg_batch.types.arrays import Halves, Pixels


class TokensStage(TokensPlan, Stage):
    """Encodes every image with SAM 3."""

    def setup(self, device: str) -> None:
        self._sam3 = Sam3.load(self._spec, resolve_device(device), self._precision(), side=self._side)
        self._sam3.forget()

    def process(self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream]) -> Iterator[RowResult]:
        run = self._run
        for row, image in decode_ahead(rows, run.decode_threads, run.decode_bytes, read_limits(run)):
            if isinstance(image, RowError):
                yield failed(row, image.code, image.message)
                continue
            [seen] = split_on_failure(lambda images: [self._tokens(images[0])], [image])
            if isinstance(seen, RowError):
                yield failed(row, seen.code, seen.message)
                continue
            yield done(row, {"height": image.shape[0], "width": image.shape[1]}, {"tokens": seen})

    def _tokens(self, image: Pixels) -> Halves:
        seen = _views_seen(self._sam3, image, self._tile)
        return next(seen) if self._tile is None else np.stack([*seen])


def _views_seen(sam3: Sam3, image: Pixels, tile: int | None) -> Iterator[Halves]:
    """Yield the tokens of every view of an image."""
    for x0, y0, x1, y1 in grid_views((image.shape[0], image.shape[1]), tile):
        yield sam3.see(image[y0:y1, x0:x1])


class Sam3Stage(Sam3Plan, WordStage):
    """Searches every image for every word that no earlier run has searched it for."""

    def setup(self, device: str) -> None:
        target, chunk = resolve_device(device), self._settings.words_chunk
        self._sam3 = Sam3.load(self._spec, target, self._precision(), chunk, self._side)
        self._words = self._sam3.encode_words(self._vocabulary.queries)
        self._sam3.forget()

    def process(
        self, rows: Sequence[ImageRow], upstream: Mapping[str, Upstream], earlier: Sequence[EarlierShard] = ()
    ) -> Iterator[RowResult]:
        todo, answers = ready(rows, upstream, self.needs)
        yield from answers
        with known_words(self._vocabulary.queries, earlier) as known:
            for row, image in self._images(todo):
                if isinstance(image, RowError):
                    yield failed(row, image.code, image.message)
                    continue
                try:
                    chosen = self._chosen(row)
                except ValueError as error:  # of the row's own prompts
                    yield failed(row, FailureCode.MODEL, str(error))
                    continue
                [found] = split_on_failure(
                    functools.partial(self._found, row, chosen, known.of(row), upstream), [image]
                )
                yield failed(row, found.code, found.message) if isinstance(found, RowError) else found

    def _images(self, rows: Sequence[ImageRow]) -> Iterator[tuple[ImageRow, Pixels | RowError | None]]:
        """Yield the decoded images, or None for each where their tokens are kept."""
        run = self._run
        if not self.reads_images:
            yield from ((row, None) for row in rows)
        else:
            yield from decode_ahead(rows, run.decode_threads, run.decode_bytes, read_limits(run))

    def _chosen(self, row: ImageRow) -> list[int]:
        """Return the indices of the words of a row. Raises ValueError for prompts that name no label."""
        left_out = set(self._vocabulary.left_out(row.extra.get("prompts")))
        return [query for query in range(len(self._vocabulary.queries)) if query not in left_out]

    def _found(
        self,
        row: ImageRow,
        chosen: Sequence[int],
        known: Mapping[int, FoundWord],
        upstream: Mapping[str, Upstream],
        images: Sequence[Pixels | None],
    ) -> list[RowResult]:
        """Search one image, or its kept tokens, for the words that are not known."""
        [image] = images
        if image is None:
            values = upstream["tokens"].values(row.row)
            size = (values["height"], values["width"])
        else:
            size = (image.shape[0], image.shape[1])
        missing = [query for query in chosen if query not in known]
        seen = self._kept_tokens(row, size, upstream) if image is None else _views_seen(self._sam3, image, self._tile)
        found = {word.query: word for word in (self._searched(size, seen, missing) if missing else ())}
        words = [known[query] if query in known else found[query] for query in chosen]
        return [replace(done(row, *packed(words, size)), reused=len(chosen) - len(missing))]

    def _kept_tokens(self, row: ImageRow, size: tuple[int, int], upstream: Mapping[str, Upstream]) -> Iterator[Halves]:
        """Yield the stored tokens of every view of an image."""
        grid, views = self._sam3.grid, len(grid_views(size, self._tile))
        shape = (*([] if self._tile is None else [views]), grid, grid, self._spec.width)
        tokens = upstream["tokens"].array(row.row, "tokens", shape).astype(np.float16, copy=False)
        yield from [tokens] if self._tile is None else tokens

    def _searched(self, size: tuple[int, int], seen: Iterable[Halves], queries: Sequence[int]) -> list[FoundWord]:
        """Search the tokens of every view for words."""
        settings, views, parts = self._settings, grid_views(size, self._tile), []
        for view, tokens in zip(views, seen, strict=True):
            keep = functools.partial(self._kept, size, view)
            parts.append(self._sam3.answer(tokens, self._words, settings.floor, keep, queries, settings.maps == "all"))
        return [_joined(of_word, views, size) for of_word in zip(*parts, strict=True)]

    def _kept(self, size: tuple[int, int], view: Box, query: int, answer: WordAnswer) -> FoundWord:
        best = float(answer.scores.max())
        if answer.soft is None:
            return FoundWord(query, answer.presence, best, [], None)
        scores, corners = answer.scores[answer.kept], answer.boxes[answer.kept].clip(0, 1)
        x0, y0, x1, y1 = view
        width, height = x1 - x0, y1 - y0
        boxes = corners * np.array([width, height] * 2, np.float32) + np.array([x0, y0] * 2, np.float32)
        masks = []
        for probabilities, score, box in zip(answer.masks, scores.tolist(), boxes.tolist(), strict=True):
            # as the processor of the published model: probabilities are resized, and not logits
            runs = above(probabilities.T, (width, height), self._settings.mask)
            counts = _in_image(runs, view, size)
            if counts is not None:
                masks.append(WordMask(query, score, tuple(box), runs.area(), counts))
        soft = torch.zeros_like(answer.soft) if self._settings.maps == "instances" else answer.soft
        fused = fused_word(answer.masks, torch.from_numpy(scores), answer.presence, soft)
        return FoundWord(query, answer.presence, best, masks, stored(fused))


def _in_image(down_columns: MaskRuns, view: Box, size: tuple[int, int]) -> bytes | None:
    """Return the counts of a mask of a view in the image (H, W). None: it has no pixel, or the view cuts it.

    Args:
        down_columns: runs of the mask with rows and columns exchanged.
    """
    if not down_columns.area():
        return None
    if down_columns.size == size[::-1]:
        return rle.from_counts(down_columns.counts(), *size)
    turned = down_columns.placed()
    placed = PlacedMask(turned.pixels.T, turned.top + view[0], turned.left + view[1])
    return None if is_cut(placed.box, view, size) else rle.encode_placed(placed, *size)


def _joined(of_word: Sequence[FoundWord], views: Sequence[Box], size: tuple[int, int]) -> FoundWord:
    """Join what the views of an image have of one word. The whole image is the first view."""
    whole = of_word[0]
    if len(of_word) == 1:
        return whole
    fused = whole.fused
    for one, view in zip(of_word[1:], views[1:], strict=True):
        if one.fused is not None:
            fused = pasted(np.zeros_like(one.fused) if fused is None else fused, one.fused, view, size)
    masks = [mask for one in of_word for mask in one.masks]
    return FoundWord(whole.query, max(one.presence for one in of_word), max(one.best for one in of_word), masks, fused)
