"""Decide the class of every pixel of an image from a much smaller map of similarities.

A bilinear value is a convex combination of the four values around it. A query that is the highest at all four is
therefore the highest everywhere between them. Queries are compared per pixel only in cells of the map whose corners
have different winners, and there only those that can be first or second. The cost of the other pixels does not depend
on the number of words.

The classes equal those of a softmax for every pixel. The logarithm of the sum of the softmax is interpolated between
the corners. Where the corners have the same winner, the logit of the second class is interpolated, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg_batch.methods.vocabulary import Vocabulary

STRIP_VALUES = 2_000_000  # similarities of a strip of the map
STRIP_PIXELS = 1_000_000  # pixels of a strip of the image
PATCH_VALUES = 500_000  # similarities at the pixels of contested cells that are compared at once
CUDA_FACTOR = 16  # so many strips of a CPU at once on a GPU, which has no cache to fit
LOWEST = -1e4  # below any similarity, and the logarithm of a probability of 0


class Decided(NamedTuple):
    """The decisions for a horizontal strip of an image.

    Attributes:
        labels: (rows, W) int16, the most probable class.
        best, second: (rows, W) float32, probabilities of this class and of the next one.
        background: (rows, W) float32, probability of class 0; None unless it was requested.
    """

    labels: Tensor
    best: Tensor
    second: Tensor
    background: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Axis:
    """The cells of a map along one axis: each lies between two neighbouring values, and half a cell at either end.

    Attributes:
        cell: (target,) int64, cell of each pixel.
        place: (target,) float32, position of each pixel in its cell, in [0, 1).
        first, count: (source + 1,) int64, first pixel of each cell, and its number of pixels.
        before, after: (source + 1,) int64, index of the value on either side of each cell.
    """

    cell: Tensor
    place: Tensor
    first: Tensor
    count: Tensor
    before: Tensor
    after: Tensor

    @classmethod
    def between(cls, source: int, target: int) -> _Axis:
        """Return all cells of an axis, on the CPU."""
        position = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) + 0.5
        cell = position.long()
        count = torch.bincount(cell, minlength=source + 1)
        edges = torch.arange(source + 1)
        return cls(
            cell,
            (position - cell).float(),
            count.cumsum(0) - count,
            count,
            (edges - 1).clamp(min=0),
            edges.clamp(max=source - 1),
        )

    def part(self, first: int, last: int) -> tuple[_Axis, slice, slice]:
        """Return the cells from `first` to `last`, the slice of the values around them, and the slice of their pixels.

        The indices of the cells count from the starts of the two slices.
        """
        values = slice(int(self.before[first]), int(self.after[last - 1]) + 1)
        pixels = slice(int(self.first[first]), int(self.first[last - 1] + self.count[last - 1]))
        axis = _Axis(
            self.cell[pixels] - first,
            self.place[pixels],
            self.first[first:last] - pixels.start,
            self.count[first:last],
            self.before[first:last] - values.start,
            self.after[first:last] - values.start,
        )
        return axis, values, pixels

    def to(self, device: torch.device) -> _Axis:
        """Return the axis on a device."""
        return _Axis(*(getattr(self, one.name).to(device) for one in fields(self)))

    def pixels(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pixels of some cells, whether each is in its cell, and its position there: (cells, most) each."""
        places = torch.arange(int(self.count.max()), device=cells.device)
        pixels = (self.first[cells, None] + places).clamp(max=len(self.cell) - 1)
        return pixels, places < self.count[cells, None], self.place[pixels]


@dataclass(frozen=True, slots=True)
class _Rivals:
    """The queries that can win pixels, at some rows of the map.

    Attributes:
        logits: (R, rows, w) float32, similarities times the logit scale.
        owners: (R,) int64, class of each.
        log_sum: (rows, w) float32, logarithm of the sum of the softmax.
    """

    logits: Tensor
    owners: Tensor
    log_sum: Tensor

    @classmethod
    def of(cls, similarities: Tensor, vocabulary: Vocabulary, logit_scale: float, scarce: Tensor | None) -> _Rivals:
        """Return the rivals of a part of the map of similarities (Q, rows, w)."""
        logits = similarities * logit_scale
        owners = torch.tensor(vocabulary.channel_class, device=logits.device)
        log_sum = torch.logsumexp(logits[: len(owners)], dim=0)
        if vocabulary.pooled:  # the first channel counts in the sum alone, the last one competes
            logits, owners = logits[1:], owners.roll(-1)
        if scarce is not None:
            logits = logits.masked_fill(scarce[owners][:, None, None], LOWEST)
        return cls(logits, owners, log_sum)

    def of_class_0(self) -> Tensor:
        """Return the highest logit of the queries of class 0: (rows, w)."""
        return self.logits[self.owners == 0].amax(dim=0)

    def second(self, winner: Tensor) -> Tensor:
        """Return the highest logit of the queries of other classes than the winner's: (rows, w)."""
        if len(self.owners.unique()) == len(self.owners):
            return self.logits.scatter(0, winner[None], LOWEST).amax(dim=0)
        same = self.owners[:, None, None] == self.owners[winner][None]
        return self.logits.masked_fill(same, LOWEST).amax(dim=0)


def enlarged(
    rows: Callable[[int, int], Tensor],
    shape: tuple[int, int],
    size: tuple[int, int],
    vocabulary: Vocabulary,
    logit_scale: float,
    device: torch.device,
    scarce: Tensor | None = None,
    with_background: bool = False,
) -> Iterator[tuple[int, Decided]]:
    """Decide the class of every pixel.

    Args:
        rows: first row and the row after the last one → these rows of the map of similarities, (Q, rows, w) float32.
        shape: (h, w) of the map.
        size: (H, W) of the image.
        vocabulary: classes of the channels.
        logit_scale: factor of the similarities in the softmax.
        device: of the similarities.
        scarce: (C,) bool, classes that win no pixel.
        with_background: compute the probability of class 0, too.

    Yields:
        First row of a strip of the image, and its decisions.
    """
    down, across = (_Axis.between(*pair) for pair in zip(shape, size, strict=True))
    values, pixels = vocabulary.channels * shape[1], math.ceil(size[0] / shape[0]) * size[1]
    step = max(1, min(STRIP_VALUES // values, STRIP_PIXELS // pixels))
    if device.type == "cuda":
        step *= CUDA_FACTOR
    columns = across.to(device)
    for first in range(0, shape[0] + 1, step):
        strip, source, target = down.part(first, min(first + step, shape[0] + 1))
        if target.stop > target.start:
            rivals = _Rivals.of(rows(source.start, source.stop), vocabulary, logit_scale, scarce)
            yield target.start, _decide(rivals, strip.to(device), columns, with_background)


def _decide(rivals: _Rivals, down: _Axis, across: _Axis, with_background: bool) -> Decided:
    """Decide the pixels of a strip."""
    best, winner = rivals.logits.max(dim=0)
    background = [rivals.of_class_0()] if with_background else []
    corner = winner[down.before][:, across.before]
    labels = rivals.owners.short()[corner].repeat_interleave(across.count, 1).repeat_interleave(down.count, 0)

    logarithms = torch.stack([best, rivals.second(winner), *background]) - rivals.log_sum
    tall = torch.lerp(logarithms[:, down.before[down.cell]], logarithms[:, down.after[down.cell]], down.place[:, None])
    decided = Decided(labels, *F.interpolate(tall[:, None], labels.shape, mode="bilinear")[:, 0].exp_())

    contested = corner != winner[down.before][:, across.after]
    for values in (across.before, across.after):
        contested |= corner != winner[down.after][:, values]
    y, x = contested.nonzero(as_tuple=True)
    _compare(rivals, torch.stack([rivals.log_sum, *background]), y, x, down, across, decided)
    return decided


@dataclass(frozen=True, slots=True)
class _Pixels:
    """The pixels of some cells. Cells have different sizes, so a place of the largest one may be outside.

    Attributes:
        down, across: (cells, rows) and (cells, columns) float32, positions in the cell.
        inside: (pixels,) int64, indices of the places inside, of all (cells × rows × columns) places.
        index: (pixels,) int64, indices of these pixels in the flattened image.
    """

    down: Tensor
    across: Tensor
    inside: Tensor
    index: Tensor

    @classmethod
    def of(cls, y: Tensor, x: Tensor, down: _Axis, across: _Axis) -> _Pixels:
        """Return the pixels of the cells at (y, x)."""
        (rows, tall, fy), (columns, wide, fx) = down.pixels(y), across.pixels(x)
        inside = (tall[:, :, None] & wide[:, None]).flatten().nonzero()[:, 0]
        return cls(fy, fx, inside, (rows[:, :, None] * len(across.cell) + columns[:, None]).flatten()[inside])

    def write(self, target: Tensor, values: Tensor) -> None:
        """Write the values of the places (cells, rows, columns) into an image (H, W)."""
        target.view(-1)[self.index] = values.flatten()[self.inside]

    def between(self, corners: Tensor) -> Tensor:
        """Interpolate between the corners of the cells.

        Args:
            corners: (4, cells, K), upper left, upper right, lower left, lower right.

        Returns:
            (cells, K, rows, columns).
        """
        left, right = (
            torch.lerp(corners[side, :, :, None], corners[side + 2, :, :, None], self.down[:, None]) for side in (0, 1)
        )
        return torch.lerp(left[..., None], right[..., None], self.across[:, None, None])


def _corners(values: Tensor, y: Tensor, x: Tensor, down: _Axis, across: _Axis) -> Tensor:
    """Return the values (K, h, w) at the corners of the cells (y, x): (4, cells, K)."""
    places = [(rows[y], columns[x]) for rows in (down.before, down.after) for columns in (across.before, across.after)]
    return torch.stack([values[:, row, column].T for row, column in places])


def _compare(
    rivals: _Rivals, shared: Tensor, y: Tensor, x: Tensor, down: _Axis, across: _Axis, decided: Decided
) -> None:
    """Compare the queries at every pixel of the cells (y, x), and overwrite the decisions there.

    Args:
        shared: (1 or 2, rows, w) float32, logarithm of the sum of the softmax, and the logits of class 0.
    """
    corners, shared = (_corners(values, y, x, down, across) for values in (rivals.logits, shared))
    lead, counts = _candidates(rivals, corners)
    order = counts.argsort()
    sorted_counts: list[int] = counts[order].tolist()
    largest = int(down.count.max()) * int(across.count.max())
    start, end = 0, len(order)
    while start < end:
        most = sorted_counts[min(start + _cells(sorted_counts[start] * largest), end) - 1]
        stop = start + _cells(most * largest)
        cells, start = order[start:stop], stop
        which = lead[cells].topk(min(most, len(rivals.owners)), dim=1).indices.sort(dim=1).values
        pixels = _Pixels.of(y[cells], x[cells], down, across)

        logits = pixels.between(corners[:, cells].gather(2, which.expand(4, *which.shape)))
        log_sum, *background = pixels.between(shared[:, cells]).unbind(dim=1)
        best, winner = logits.max(dim=1)
        owners = rivals.owners[which]
        labels = owners.gather(1, winner.flatten(1)).view_as(winner)
        second = logits.masked_fill_(owners[:, :, None, None] == labels[:, None], LOWEST).amax(dim=1)

        pixels.write(decided.labels, labels.short())
        for target, found in zip(decided[1:], (best, second, *background), strict=False):
            if target is not None:
                pixels.write(target, (found - log_sum).exp_())


def _candidates(rivals: _Rivals, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lead of each query (cells, R), and how many of those with the most can be first or second (cells,).

    The references are the queries of two classes with the highest means. Differences of queries are interpolated like
    the queries. A query that is below both references at all corners is therefore neither first nor second.
    """
    mean = corners.mean(dim=0)
    first = mean.argmax(dim=1, keepdim=True)
    second = mean.masked_fill(rivals.owners == rivals.owners[first], LOWEST).argmax(dim=1, keepdim=True)
    leads = [(corners - corners.gather(2, one.expand(4, -1, 1))).amax(dim=0) for one in (first, second)]
    lead = torch.maximum(*leads)
    return lead, (lead >= 0).sum(dim=1).clamp(min=2)


def _cells(values: int) -> int:
    """Return how many cells are compared at once, each with so many similarities."""
    return max(1, PATCH_VALUES // values)
