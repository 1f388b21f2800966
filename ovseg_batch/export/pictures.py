"""PNG formats: one class map per image, one segment map per image, or one file per mask."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg_batch.export.coco import dumps, write_list
from ovseg_batch.export.exporting import Plan, Tally
from ovseg_batch.export.parts import WHOLE, ShardLines, of_split
from ovseg_batch.export.selection import ChosenImage
from ovseg_batch.io import rle
from ovseg_batch.io.atomic import atomic_path, create_text, write_text
from ovseg_batch.io.pictures import part_name
from ovseg_batch.methods.placed_mask import PlacedMask
from ovseg_batch.types import Annotation, painting_order
from ovseg_batch.types.arrays import DeepPixels, Pixels

IGNORE = 255
MANY = 254  # most classes (with the background) that fit into 8 bits beside `IGNORE`
IGNORE_16 = 65535


def class_map(image: ChosenImage, plan: Plan) -> DeepPixels:
    """Return the pixels of a semantic PNG: (H, W) uint8, or uint16 for more than 254 classes.

    With a background, 0 is the background and classes start at 1. Otherwise, classes start at 0, and pixels without a
    mask are 255 (65535 in 16 bits). Masks whose confidence is below the threshold of their label or `ignore_below` are
    also 255.
    """
    first = int(plan.has_background)
    deep = len(plan.labels) + first > MANY
    ignore = IGNORE_16 if deep else IGNORE
    empty = 0 if plan.has_background else ignore
    classes = np.full(image.size, empty, np.uint16 if deep else np.uint8, order="F")  # as decoded masks are
    for number in painting_order(image.annotations):
        one = image.annotations[number]
        value = plan.labels.index(one.category) + first if _is_sure(one, plan) else ignore
        rle.decode_placed(one.rle, *image.size).paint(classes, value)
    return np.ascontiguousarray(classes)


def _is_sure(annotation: Annotation, plan: Plan) -> bool:
    """Return whether the confidence of a mask reaches its threshold."""
    options = plan.options
    return bool(annotation.confidence >= options.thresholds.get(annotation.category, options.ignore_below))


def png(pixels: DeepPixels, palette: Sequence[int] | None = None) -> bytes:
    """Encode a map as PNG. With `palette` (r, g, b, r, g, b, …) and 8 bits, pixels are indices into it."""
    picture, file = Image.fromarray(pixels), io.BytesIO()
    if palette is not None and pixels.dtype == np.uint8:
        picture.putpalette(palette)
    picture.save(file, "PNG", compress_level=3)
    return file.getvalue()


def voc_palette() -> list[int]:
    """Return the 256 colours of PASCAL VOC: the bits of an index are distributed over red, green and blue."""
    colours = []
    for index in range(256):
        for channel in range(3):
            bits = [(index >> (3 * k + channel)) & 1 for k in range(3)]
            colours.append(sum(bit << (7 - k) for k, bit in enumerate(bits)))
    return colours


class SemanticWriter:
    """Writes `<name>.png` per image, a folder per split, and `classes.json`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._palette = voc_palette() if plan.options.palette == "voc" else None

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally = Tally()
        with self._plan.files(shard) as files:
            for image in images:
                classes = class_map(image, self._plan)
                files.add(f"{image.under}.png", png(classes, self._palette))
                tally.update(images=1, masks=len(image.annotations), pixels=classes.size)
                for one in image.annotations:
                    kept = _is_sure(one, self._plan)
                    tally.update({f"{'kept' if kept else 'ignored'} {one.category}": one.area})
            files.publish()
        return tally

    def finish(self, shards: Sequence[int]) -> list[Path]:
        first = int(self._plan.has_background)
        names = [*(["background"] if first else []), *self._plan.labels]
        ignore = IGNORE_16 if len(names) > MANY else IGNORE
        described = {"classes": dict(enumerate(names)), "ignore": ignore, **self._plan.info}
        with self._plan.files(WHOLE) as files:
            path = files.path("classes.json")
        write_text(path, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
        return [self._plan.path]


class PanopticWriter:
    """Writes `panoptic.json` and `panoptic/` per split. In the PNGs, R + 256 G + 65536 B is the id of a segment."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally = Tally()
        lines = ShardLines(("images", "annotations"), self._plan.splits)
        with self._plan.files(shard) as files:
            for image in images:
                segments, entries = self._segments(image)
                files.add(f"{of_split('panoptic', image.split)}/{image.name}.png", png(_id_colours(segments)))
                number = image.number
                described = {"id": number, "file_name": image.row.file_name}
                described |= {"width": image.width, "height": image.height}
                described |= {"confidence": round(image.confidence.least, 6), "unsure_masks": image.confidence.unsure}
                lines.add("images", image.split, dumps(described))
                entry = {"image_id": number, "file_name": f"{image.name}.png", "segments_info": entries}
                lines.add("annotations", image.split, dumps(entry))
                tally.update(images=1, masks=len(image.annotations), segments=len(entries))
            files.publish()
        lines.write(self._plan.parts, shard)
        return tally

    def _segments(self, image: ChosenImage) -> tuple[NDArray[np.uint32], list[dict[str, Any]]]:
        """Return the segment of each pixel (H, W) uint32 (0: none), and an entry per segment."""
        owner = np.zeros(image.size, np.uint32, order="F")  # as decoded masks are
        entries: list[dict[str, Any]] = []
        stuff: dict[str, dict[str, Any]] = {}
        owners: list[int] = []
        for one in image.annotations:
            name = one.category
            entry = stuff.get(name)
            if entry is None:
                entry = {"id": len(entries) + 1, "category_id": self._plan.ids[name], "iscrowd": 0, "area": 0}
                entry |= {"bbox": [int(side) for side in one.bbox], "confidence": round(one.confidence, 6)}
                entries.append(entry)
                if name in self._plan.options.stuff:
                    stuff[name] = entry
            else:
                entry["bbox"] = _around(entry["bbox"], one.bbox)
                entry["confidence"] = min(entry["confidence"], round(one.confidence, 6))
            owners.append(entry["id"])
            entry["area"] += one.area
        for number in painting_order(image.annotations):
            rle.decode_placed(image.annotations[number].rle, *image.size).paint(owner, owners[number])
        owner = np.ascontiguousarray(owner)
        counts = np.bincount(owner.ravel(), minlength=len(entries) + 1)
        for entry in entries:
            if entry["area"] != counts[entry["id"]]:  # another mask covers a part of it
                entry |= {"area": int(counts[entry["id"]]), "bbox": _visible_box(owner, entry["id"], entry["bbox"])}
        return owner, [entry for entry in entries if entry["area"]]

    def finish(self, shards: Sequence[int]) -> list[Path]:
        plan, paths = self._plan, []
        categories = [
            {"id": number, "name": name, "supercategory": "", "isthing": int(name not in plan.options.stuff)}
            for name, number in plan.ids.items()
        ]
        for split in plan.splits or ("",):
            with plan.files(WHOLE) as files:
                path = files.path(f"{of_split('panoptic', split)}.json")
            with atomic_path(path) as temporary, create_text(temporary) as file:
                file.write(f'{{"info": {dumps(plan.info)},\n"categories": {dumps(categories)},\n"images": [')
                write_list(file, plan.parts.read(shards, of_split("images", split)))
                file.write('],\n"annotations": [')
                write_list(file, plan.parts.read(shards, of_split("annotations", split)))
                file.write("]}\n")
            paths.append(path)
        return paths


class MasksWriter:
    """Writes a folder per image and a PNG per mask, 255 inside the mask."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally = Tally()
        with self._plan.files(shard) as files:
            for image in images:
                canvas = np.zeros(image.size, np.uint8)
                for number, one in enumerate(image.annotations, start=1):
                    mask = rle.decode_placed(one.rle, *image.size)
                    mask.paint(canvas, 255)
                    files.add(part_name(image.under, number, one.category, ".png"), png(canvas))
                    canvas[mask.place] = 0
                tally.update(images=1, masks=len(image.annotations))
            files.publish()
        return tally

    def finish(self, shards: Sequence[int]) -> list[Path]:
        return [self._plan.path]


def _id_colours(segments: NDArray[np.uint32]) -> Pixels:
    """Encode ids (H, W) as colours of panoptic PNGs: (H, W, 3) uint8."""
    return segments.astype("<u4", copy=False)[..., None].view(np.uint8)[..., :3]


def _visible_box(owner: NDArray[np.uint32], number: int, around: Sequence[int]) -> list[int]:
    """Return the box (x, y, width, height) of a segment's pixels, which lie in a given box; zeros if it has none."""
    x, y, width, height = around
    seen = PlacedMask.crop(owner[y : y + height, x : x + width] == number)
    if not seen.pixels.size:
        return [0, 0, 0, 0]
    return [x + seen.left, y + seen.top, seen.pixels.shape[1], seen.pixels.shape[0]]


def _around(one: Sequence[float], other: Sequence[float]) -> list[int]:
    """Return the box (x, y, width, height) around two boxes."""
    x, y = min(one[0], other[0]), min(one[1], other[1])
    right, bottom = max(one[0] + one[2], other[0] + other[2]), max(one[1] + one[3], other[1] + other[3])
    return [int(x), int(y), int(right - x), int(bottom - y)]
