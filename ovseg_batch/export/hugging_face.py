"""Data sets for Hugging Face's `datasets`: Parquet that contains the images, or a folder of images with metadata."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.export.coco import dumps
from ovseg_batch.export.exporting import Plan, Tally
from ovseg_batch.export.image_files import Reader, local_path
from ovseg_batch.export.parts import WHOLE, ShardLines, of_split
from ovseg_batch.export.pictures import class_map, png
from ovseg_batch.export.selection import ChosenImage, stem_of, visible
from ovseg_batch.io.atomic import atomic_path, create, create_text

ALL = "train"  # the split of all images if there are no splits
#: Suffixes of images that both a run and `datasets` support.
READER = Reader(frozenset(".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .ppm .pgm .pbm .pnm .jp2".split()))
#: A word between separators by which `datasets` assigns all files below a folder to a split.
SPLIT_WORD = re.compile(
    r"(?<![^-._ 0-9])(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?![^-._ 0-9])"
)
ROWS = 16  # images per row group, which must fit into memory
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OBJECT = pa.struct(
    [
        ("category", pa.int64()),
        ("bbox", pa.list_(pa.float32())),
        ("area", pa.int64()),
        ("confidence", pa.float32()),
        ("score", pa.float32()),
        ("counts", pa.string()),
    ]
)


def name_of(file_name: str) -> str:
    """Return a name that `datasets` does not hide, and in which no folder names a split."""
    *folders, stem = visible(stem_of(file_name), ".", "__").split("/")
    return "/".join([*(SPLIT_WORD.sub(r"\g<0>folder", part) for part in folders), stem])


class ParquetWriter:
    """Writes `data/<split>-<shard>.parquet`: the image, its mask (a semantic PNG), and all objects with their RLE."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._with_images = plan.options.images != "none"

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally, schema = Tally(), self._schema()
        with contextlib.ExitStack() as stack:
            files = stack.enter_context(self._plan.files(shard))
            adders: dict[str, Callable[[dict[str, Any]], None]] = {}
            for image in images:
                split = image.split or ALL
                if split not in adders:
                    path = files.path(f"data/{split}-{shard:06d}.parquet")
                    adders[split] = stack.enter_context(_parquet(path, schema, self._plan.parts.folder))
                adders[split](self._row(image))
                tally.update(images=1, masks=len(image.annotations))
        return tally

    def _row(self, image: ChosenImage) -> dict[str, Any]:
        labels = self._plan.labels
        row: dict[str, Any] = {
            "mask": {"bytes": png(class_map(image, self._plan)), "path": None},
            "key": image.row.key,
            "file_name": image.row.file_name,
            "width": image.width,
            "height": image.height,
            "confidence": image.confidence.least,
            "unsure_masks": image.confidence.unsure,
            "objects": [
                {**asdict(one), "category": labels.index(one.category), "counts": one.rle.decode("ascii")}
                for one in image.annotations
            ],
        }
        if self._with_images:
            row["image"] = {"bytes": local_path(image.row).read_bytes(), "path": image.row.file_name}
        return row

    def _schema(self) -> pa.Schema:
        """Return the Parquet schema, with the features of `datasets` in its metadata."""
        fields = [("mask", PICTURE), ("key", pa.string()), ("file_name", pa.string()), ("width", pa.int32())]
        fields += [("height", pa.int32()), ("confidence", pa.float32()), ("unsure_masks", pa.int32())]
        fields += [("objects", pa.list_(OBJECT))]
        if self._with_images:
            fields.insert(0, ("image", PICTURE))
        label = {"names": list(self._plan.labels), "_type": "ClassLabel"}
        members = {part.name: _feature(part.type) for part in OBJECT} | {"category": label}
        features = {name: _feature(kind) for name, kind in fields} | {"objects": [members]}
        return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})

    def finish(self, shards: Sequence[int]) -> list[Path]:
        return [self._plan.path]


class ImageFolderWriter:
    """Writes a folder per split: `images/`, `masks/` (semantic PNGs) and `metadata.jsonl`, which names both."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        tally, plan = Tally(), self._plan
        lines = ShardLines(("lines",), plan.splits)
        with plan.files(shard) as files:
            for image in images:
                folder = image.split or ALL
                files.add(f"{folder}/masks/{image.name}.png", png(class_map(image, plan)))
                name = f"{folder}/images/{image.name}"
                suffix = files.place(image.row, name, image.suffix, READER, plan.options.images)
                lines.add("lines", image.split, dumps(self._line(image, suffix)))
                tally.update(images=1, masks=len(image.annotations))
            files.publish()
        lines.write(plan.parts, shard)
        return tally

    def _line(self, image: ChosenImage, suffix: str) -> dict[str, Any]:
        masks = image.annotations
        kept = ("bbox", "area", "confidence")
        objects: dict[str, list[Any]] = {name: [getattr(one, name) for one in masks] for name in kept}
        objects["category"] = [self._plan.labels.index(one.category) for one in masks]
        objects["counts"] = [one.rle.decode("ascii") for one in masks]
        return {
            "file_name": f"images/{image.name}{suffix}",
            "mask_file_name": f"masks/{image.name}.png",
            "key": image.row.key,
            "confidence": image.confidence.least,
            "unsure_masks": image.confidence.unsure,
            "objects": objects,
        }

    def finish(self, shards: Sequence[int]) -> list[Path]:
        for split in self._plan.splits or ("",):
            with self._plan.files(WHOLE) as files:
                path = files.path(f"{split or ALL}/metadata.jsonl")
            with atomic_path(path) as temporary, create_text(temporary) as file:
                for line in self._plan.parts.read(shards, of_split("lines", split)):
                    file.write(f"{line}\n")
        return [self._plan.path]


@contextlib.contextmanager
def _parquet(path: Path, schema: pa.Schema, beside: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that adds a row to a Parquet file, which is written in `beside` and renamed at the end."""
    rows: list[dict[str, Any]] = []
    with atomic_path(path, beside) as temporary, create(temporary) as file, pq.ParquetWriter(file, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def add(row: dict[str, Any]) -> None:
            rows.append(row)
            if len(rows) == ROWS:
                flush()

        yield add
        if rows:
            flush()


def _feature(kind: pa.DataType) -> Any:
    """Return the feature of `datasets` for a column of an Arrow type."""
    if kind == PICTURE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": {"float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}
