"""Pictures of an image in two runs: the photograph, the masks of each run as layers, and the pixels that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from ovseg_batch.errors import RowError
from ovseg_batch.evaluate.truth.matching import simple
from ovseg_batch.io import rle
from ovseg_batch.io.images import read_row
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.remote import is_remote
from ovseg_batch.methods.colours import palette
from ovseg_batch.methods.small_masks import small_mask
from ovseg_batch.types import Annotation, FinishedImage, painting_order
from ovseg_batch.types.arrays import Integers, Pixels
from ovseg_batch.workdir.results import Results

SIDE = 480  # longer side of a picture in pixels
CHANGED = (255, 90, 0)  # colour of pixels that differ


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures by kind: `photo`, if the file can be read, the layers `a` and `b`, and `changed`; all of one size."""

    height: int
    width: int
    pictures: dict[str, Image.Image]


def draw(
    runs: tuple[Results, Results], rows: tuple[int, int], labels: Sequence[str], limits: Limits
) -> Pictures | None:
    """Draw an image in two runs. Return None if a run has not finished it any more.

    Args:
        rows: manifest rows in the runs.
        labels: labels of both runs, which decide the colours.
    """
    images = [_image(run, row) for run, row in zip(runs, rows, strict=True)]
    if images[0] is None or images[1] is None:
        return None
    height, width = images[0].size
    scale = min(1.0, SIDE / max(height, width))
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    places = {simple(label): place for place, label in enumerate(labels)}
    pictures: dict[str, Image.Image] = {}
    photo = _photo(images[0], shape, limits)
    if photo is not None:
        pictures["photo"] = Image.fromarray(photo)
    maps = []
    for kind, image in zip("ab", images, strict=True):
        assert image is not None
        owners, drawn = _maps(image, shape, places)
        maps.append(drawn)
        pictures[kind] = Image.fromarray(_layer(owners, drawn, len(labels)))
    changed = np.zeros((*shape, 4), np.uint8)
    changed[maps[0] != maps[1]] = *CHANGED, 255
    pictures["changed"] = Image.fromarray(changed)
    return Pictures(*shape, pictures)


def _image(run: Results, row: int) -> FinishedImage[Annotation] | None:
    shard = run.manifest.shard_of(row)
    if run.masks.read_commit(shard) is None:
        return None
    return next((image for image in run.shard(shard) if image.row.row == row), None)


def _photo(image: FinishedImage[Annotation], shape: tuple[int, int], limits: Limits) -> Pixels | None:
    if is_remote(image.row.path):
        return None
    try:
        pixels = read_row(image.row, limits)
    except RowError:
        return None
    return np.asarray(cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _maps(
    image: FinishedImage[Annotation], shape: tuple[int, int], places: dict[str, int]
) -> tuple[Integers, Integers]:
    """Return the mask (from 1) and the label of each pixel of the picture; 0 and -1 without a mask."""
    owners, drawn = np.zeros(shape, np.uint16), np.full(shape, -1, np.int16)
    for number in painting_order(image.annotations):
        one = image.annotations[number]
        mask = small_mask(rle.column_runs(one.rle, *image.size), shape)
        mask.paint(owners, number + 1)
        mask.paint(drawn, places[simple(one.category)])
    return owners, drawn


def _layer(owners: Integers, drawn: Integers, labels: int) -> Pixels:
    """Return the masks in the colours of their labels with darker edges (h, w, 4)."""
    layer = np.zeros((*drawn.shape, 4), np.uint8)
    layer[..., :3], layer[..., 3] = palette(labels)[np.maximum(drawn, 0)], np.where(drawn >= 0, 255, 0)
    edges = cv2.morphologyEx(np.asarray(owners, np.uint16), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    layer[edges & (drawn >= 0), :3] //= 2
    return layer
