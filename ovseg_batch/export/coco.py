"""COCO `annotations.json`: compressed RLE counts as text, iscrowd 0, one entry per mask, streamed shard by shard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from ovseg_batch import failpoints
from ovseg_batch.io.atomic import atomic_path, create_text

Line = Mapping[str, Any]


def write_coco(
    path: Path,
    categories: Iterable[str],
    info: Mapping[str, Any],
    lines: Callable[[], Iterator[tuple[str, Line]]],
) -> tuple[int, int]:
    """Write a COCO instances file, holding one shard at a time.

    Args:
        path: replaced atomically.
        categories: names in order; ids count from 1.
        info: provenance, kept in the file's `info`.
        lines: gives (file name, refine row) of every finished image in manifest order; called twice. Image ids are
            manifest rows + 1. Failed images are left out: a trainer would take them for empty ones.

    Returns:
        how many images and annotations were written.
    """
    identity = {name: index for index, name in enumerate(categories, start=1)}
    with atomic_path(path) as temporary, create_text(temporary) as file:
        file.write(f'{{"info": {_json(info)},\n"licenses": [],\n"categories": ')
        file.write(_json([{"id": i, "name": name, "supercategory": ""} for name, i in identity.items()]))
        file.write(',\n"images": [')
        images = _write_list(file, (_image(name, line) for name, line in lines()))
        failpoints.reach("images")
        file.write('],\n"annotations": [')
        annotations = _write_list(file, _annotations(lines(), identity))
        file.write("]}\n")
    return images, annotations


def _image(file_name: str, line: Line) -> dict[str, Any]:
    return {"id": line["row"] + 1, "file_name": file_name, "width": line["width"], "height": line["height"]}


def _annotations(lines: Iterator[tuple[str, Line]], identity: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    number = 0
    for _, line in lines:
        for annotation in line["annotations"]:
            number += 1
            yield {
                "id": number,
                "image_id": line["row"] + 1,
                "category_id": identity[annotation["category"]],
                "bbox": annotation["bbox"],
                "area": annotation["area"],
                "iscrowd": 0,
                "segmentation": {"size": [line["height"], line["width"]], "counts": annotation["rle"].decode("ascii")},
                "score": _rounded(annotation["score"]),
                "source": annotation["source"],
                "coverage": _rounded(annotation["coverage"]),
                "predicted_iou": _rounded(annotation["predicted_iou"]),
                "stability": _rounded(annotation["stability"]),
                **({"reason": annotation["reason"]} if annotation["reason"] else {}),
            }


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 6)


def _write_list(file: TextIO, entries: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for entry in entries:
        file.write("\n" if count == 0 else ",\n")
        file.write(_json(entry))
        count += 1
    return count


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
