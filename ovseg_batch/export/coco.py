"""COCO instances: RLE counts as text or polygons, iscrowd 0, one entry per mask, streamed shard by shard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ovseg_batch import failpoints
from ovseg_batch.export.exporting import Plan, Tally
from ovseg_batch.export.parts import ShardLines, of_split, split_path
from ovseg_batch.export.selection import ChosenImage
from ovseg_batch.io import rle
from ovseg_batch.io.atomic import atomic_path, create_text
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.io.marks import DESCRIPTION
from ovseg_batch.types import Annotation, MaskSummary
from ovseg_batch.workdir.results import finished_images
from ovseg_batch.workdir.store import StageStore

HEAD = f'{{"info": {{"description": "{DESCRIPTION}"'  # start of every file that `_write` writes


def write_coco(
    path: Path,
    categories: Iterable[str],
    info: Mapping[str, Any],
    manifest: Manifest,
    masks: StageStore,
) -> tuple[int, int, dict[str, int]]:
    """Write a COCO instances file. One shard at a time is held in memory.

    Args:
        path: replaced atomically.
        categories: names in order. Ids start at 1.
        info: provenance, written to `info` of the file.
        manifest: manifest of the run, which decides the ids of images.
        masks: the stage that computed the masks. It is read twice. Failed images are not written, because a trainer
            would treat them as empty.

    Returns:
        numbers of images and annotations, and category → number of images with a mask of it, in order.
    """
    ids = {name: index for index, name in enumerate(categories, start=1)}
    label_images, image_id = dict.fromkeys(ids, 0), manifest.image_id

    def images() -> Iterator[str]:
        for image in finished_images(manifest, masks, None, ids, MaskSummary):
            for label in {one.category for one in image.annotations}:
                label_images[label] += 1
            yield dumps(_image(image.row.file_name, image_id(image.row), *image.size))

    annotations = (
        dumps(_annotation(one, image_id(image.row), ids, _counts(one, *image.size)))
        for image in finished_images(manifest, masks, labels=ids)
        for one in image.annotations
    )
    return *_write(path, {**info, **manifest.id_info}, _categories(ids), images(), annotations), label_images


class CocoWriter:
    """Writes one file, or one file per split: `masks.json`, or `masks-train.json` and `masks-val.json`."""

    polygons = False

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally = Tally()
        lines = ShardLines(("images", "annotations"), self._plan.splits)
        for image in images:
            number, size = image.number, image.size
            entry = _image(image.row.file_name, number, *size)
            entry |= {"confidence": round(image.confidence.least, 6), "unsure_masks": image.confidence.unsure}
            lines.add("images", image.split, dumps(entry))
            for one in image.annotations:
                outline = self._polygons(one.rle, *size) if self.polygons else _counts(one, *size)
                line = _annotation(one, number, self._plan.ids, outline)
                lines.add("annotations", image.split, dumps(line))
            tally.update(images=1, masks=len(image.annotations))
        lines.write(self._plan.parts, shard)
        return tally

    def _polygons(self, counts: bytes, height: int, width: int) -> list[list[float]]:
        from ovseg_batch.methods.polygons import edge_rings  # imported here: it imports OpenCV, which RLE does not need

        rings = edge_rings(rle.decode_placed(counts, height, width), self._plan.options.tolerance)
        return [[int(v) if v == int(v) else round(v, 2) for v in ring.ravel().tolist()] for ring in rings]

    def finish(self, shards: Sequence[int]) -> list[Path]:
        plan, paths = self._plan, []
        for split in plan.splits or ("",):
            path = split_path(plan.path, split)
            images = plan.parts.read(shards, of_split("images", split))
            annotations = plan.parts.read(shards, of_split("annotations", split))
            info = {"description": DESCRIPTION, **plan.info}
            _write(path, info, _categories(plan.ids), images, annotations)
            paths.append(path)
        return paths


class CocoPolygonWriter(CocoWriter):
    """Writes COCO instances with polygons, for readers that do not support RLE or treat it as crowds."""

    polygons = True


def _image(file_name: str, number: int, height: int, width: int) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "width": width, "height": height}


def _annotation(one: Annotation, image_id: int, ids: Mapping[str, int], outline: Any) -> dict[str, Any]:
    """Return an entry without its id. Ids are assigned for the whole file."""
    return {
        "image_id": image_id,
        "category_id": ids[one.category],
        "bbox": one.bbox,
        "area": one.area,
        "iscrowd": 0,
        "segmentation": outline,
        "score": _rounded(one.score),
        "confidence": _rounded(one.confidence),
        "margin": _rounded(one.margin),
        "source": one.source,
        "coverage": _rounded(one.coverage),
        "predicted_iou": _rounded(one.predicted_iou),
        "stability": _rounded(one.stability),
        **({"reason": one.reason} if one.reason else {}),
    }


def _counts(one: Annotation, height: int, width: int) -> dict[str, Any]:
    return {"size": [height, width], "counts": one.rle.decode("ascii")}


def _categories(ids: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name, "supercategory": ""} for name, number in ids.items()]


def _write(
    path: Path,
    info: Mapping[str, Any],
    categories: Sequence[Mapping[str, Any]],
    images: Iterable[str],
    annotations: Iterable[str],
) -> tuple[int, int]:
    """Write a file from JSON entries. Annotations are numbered from 1. Return the numbers of images and annotations."""
    with atomic_path(path) as temporary, create_text(temporary) as file:
        file.write(f'{{"info": {dumps(info)},\n"licenses": [],\n"categories": {dumps(categories)},\n"images": [')
        written = write_list(file, images)
        failpoints.reach("images")
        file.write('],\n"annotations": [')
        numbered = (f'{{"id": {number}, {entry[1:]}' for number, entry in enumerate(annotations, start=1))
        count = write_list(file, numbered)
        file.write("]}\n")
    return written, count


def write_list(file: TextIO, entries: Iterable[str]) -> int:
    """Write the elements of a JSON array, one per line. Return their number."""
    count = 0
    for entry in entries:
        file.write("\n" if count == 0 else ",\n")
        file.write(entry)
        count += 1
    return count


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 6)
