"""Ultralytics' segmentation data sets: a polygon a line, a text file an image, `data.yaml`."""

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

ALL = "train"  # the folder of images that are not parted
IMAGES = "images"  # Ultralytics puts `labels` for the last folder of this name in an image's path
SUFFIXES = "bmp dng jpeg jpg mpo png tif tiff webp heic heif avif jp2".split()  # Ultralytics' IMG_FORMATS
READER = Reader(frozenset(f".{name}" for name in SUFFIXES), frozenset(name.upper() for name in SUFFIXES))


def name_of(file_name: str) -> str:
    """Return a name under which Ultralytics finds the image, and the labels of the image: no folder is `images`."""
    *folders, stem = visible(stem_of(file_name), ".").split("/")
    return "/".join([*(f"{part}_" if part == IMAGES else part for part in folders), stem])


class YoloWriter:
    """`images/<split>/`, `labels/<split>/<name>.txt`, `data.yaml`. An image without masks has an empty file."""

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
        """`class x y x y …` in shares of the width and height."""
        from ovseg_batch.methods.polygons import centre_ring  # imports OpenCV, which other formats do not need

        mask = rle.decode(counts, image.height, image.width)
        ring = centre_ring(mask, self._plan.options.tolerance) / (image.width, image.height)
        if len(ring) < 3:  # a point or a line of pixels; readers want three corners
            ring = np.resize(ring, (3, 2))
        return f"{self._plan.labels.index(label)} {' '.join(f'{value:.6f}' for value in ring.ravel().tolist())}\n"

    def finish(self, shards: Sequence[int]) -> list[Path]:
        plan = self._plan
        splits = plan.splits or (ALL,)
        described = {
            "path": str(plan.path.resolve()),
            **{split: f"images/{split}" for split in splits},
            **({} if "val" in splits else {"val": f"images/{ALL}"}),  # ultralytics wants one
            "names": dict(enumerate(plan.labels)),
        }
        with plan.files(WHOLE) as files:
            path = files.path("data.yaml")
        write_text(path, yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
        return [path]
