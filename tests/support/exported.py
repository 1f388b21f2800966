"""Exports as the tests write, read and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from ovseg_batch.export.exporting import Options, export
from ovseg_batch.export.formats import WRITERS
from ovseg_batch.export.selection import Selection
from ovseg_batch.workdir.store import Workdir

Array = np.ndarray[Any, Any]
Masks = dict[str, list[tuple[str, Array]]]

FILES = {"coco": "masks.json", "coco-polygon": "masks.json", "cvat": "masks.xml", "csv": "masks.csv"}


def write(workdir: Path, name: str, folder: Path, selection: Selection | None = None, **options: Any) -> Path:
    """An export; its path."""
    path = folder / FILES.get(name, name)
    export(Workdir(workdir), WRITERS[name], path, selection or Selection(), Options(**options), workers=0)
    return path


def same(one: Masks, other: Masks) -> bool:
    """The same masks of the same labels in the same order, to the pixel."""
    return one.keys() == other.keys() and all(
        [label for label, _ in one[name]] == [label for label, _ in other[name]]
        and all(np.array_equal(a, b) for (_, a), (_, b) in zip(one[name], other[name], strict=True))
        for name in one
    )


def read_coco(path: Path) -> Masks:
    coco = COCO(str(path))
    return {
        image["file_name"]: [
            (coco.cats[one["category_id"]]["name"], coco.annToMask(one).astype(bool))
            for one in coco.loadAnns(coco.getAnnIds(imgIds=[number], iscrowd=False))
        ]
        for number, image in coco.imgs.items()
    }


def tree(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and ".ovseg-export" not in p.parts and p.name != "data.yaml"  # which holds its own path
    }
