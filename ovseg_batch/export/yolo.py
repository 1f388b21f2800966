"""Ultralytics' segmentation data sets: a text file per image with a polygon per line, and `data.yaml`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import yaml

from ovseg_batch.export.exporting import Plan, Tally
from ovseg_batch.export.image_files import Reader
from ovseg_batch.export.parts import WHOLE
from ovseg_batch.export.selection import ChosenImage, stem_of, visible
from ovseg_batch.io import rle
from ovseg_batch.io.atomic import write_text

ALL = "train"  # the folder of all images if there are no splits
IMAGES = "images"  # Ultralytics replaces the last folder of this name in a path by `labels`
SUFFIXES = "bmp dng jpeg jpg mpo png tif tiff webp heic heif avif jp2".split()  # Ultralytics' IMG_FORMATS
READER = Reader(frozenset(f".{name}" for name in SUFFIXES), frozenset(name.upper() for name in SUFFIXES))


def name_of(file_name: str) -> str:
    """Return a name without a folder `images`, so that Ultralytics finds the image and its labels."""
    *folders, stem = visible(stem_of(file_name), ".").split("/")
    return "/".join([*(f"{part}_" if part == IMAGES else part for part in folders), stem])


class YoloWriter:
    """Writes `images/<split>/`, `labels/<split>/<name>.txt` and `data.yaml`. Without masks, the file is empty."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally, plan = Tally(), self._plan
        with plan.files(shard) as files:
            for image in images:
                name = f"{image.split or ALL}/{image.name}"
                lines = [self._line(image, one.category, one.rle) for one in image.annotations]
                files.add(f"labels/{name}.txt", "".join(lines).encode())
                files.place(image.row, f"images/{name}", image.suffix, READER, plan.options.images)
                tally.update(images=1, masks=len(lines))
            files.publish()
        return tally

    def _line(self, image: ChosenImage, label: str, counts: bytes) -> str:
        """Return `class x y x y …`, with coordinates relative to the width and height."""
        # imported here: it imports OpenCV, which other formats do not need
        from ovseg_batch.methods.polygons import centre_ring

        mask = rle.decode_placed(counts, image.height, image.width)
        ring = centre_ring(mask, self._plan.options.tolerance) / (image.width, image.height)
        if len(ring) < 3:  # a point or a line of pixels; readers require three corners
            ring = np.resize(ring, (3, 2))
        return f"{self._plan.labels.index(label)} {' '.join(f'{value:.6f}' for value in ring.ravel().tolist())}\n"

    def finish(self, shards: Sequence[int]) -> list[Path]:
        plan = self._plan
        splits = plan.splits or (ALL,)
        described = {
            "path": str(plan.path.resolve()),
            **{split: f"images/{split}" for split in splits},
            **({} if "val" in splits else {"val": f"images/{ALL}"}),  # required by ultralytics
            "names": dict(enumerate(plan.labels)),
        }
        with plan.files(WHOLE) as files:
            path = files.path("data.yaml")
        write_text(path, yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
        return [path]
