"""CSV with one line per mask, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from ovseg_batch.export.exporting import Plan, Tally
from ovseg_batch.export.failures import plain
from ovseg_batch.export.parts import ShardLines, of_split, split_path
from ovseg_batch.export.selection import ChosenImage
from ovseg_batch.io.atomic import atomic_path, create_text
from ovseg_batch.types import Annotation

MEASURED = ("confidence", "score", "margin", "coverage", "predicted_iou", "stability")
ABOUT = ("key", "file_name", "split", "width", "height", "label")
COLUMNS = (*ABOUT, *MEASURED, "x", "y", "box_width", "box_height", "area", "source", "reason", "rle")
HEAD = ",".join(COLUMNS) + "\n"


class CsvWriter:
    """Writes a file, or one per split. `rle` holds COCO's compressed counts. Images without masks have no line."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally = Tally()
        lines = ShardLines(("lines",), self._plan.splits)
        for image in images:
            for one in image.annotations:
                lines.add("lines", image.split, _line(image, one))
            tally.update(images=1, masks=len(image.annotations))
        lines.write(self._plan.parts, shard)
        return tally

    def finish(self, shards: Sequence[int]) -> list[Path]:
        paths = []
        for split in self._plan.splits or ("",):
            path = split_path(self._plan.path, split)
            with atomic_path(path) as temporary, create_text(temporary) as file:
                file.write(HEAD)
                for line in self._plan.parts.read(shards, of_split("lines", split)):
                    file.write(f"{line}\n")
            paths.append(path)
        return paths


def _line(image: ChosenImage, one: Annotation) -> str:
    numbers = ["" if (value := getattr(one, name)) is None else f"{value:.6g}" for name in MEASURED]
    box = [f"{side:g}" for side in one.bbox]
    row = [image.row.key, image.row.file_name, image.split, image.width, image.height, one.category, *numbers, *box]
    row += [one.area, one.source, one.reason or ""]
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([*(plain(str(field)) for field in row), one.rle.decode("ascii")])
    return out.getvalue()
