"""Files of lists, manifests, labels, settings and truths, whole and mutated."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from ovseg_batch.io.manifest import build_manifest
from tests.harness.mutations import VALUES, mutate_bytes, mutate_json, mutate_text, to_json

Draw = Callable[[Random], tuple[bytes, str, str]]

IMAGES = ("a.png", "b.png", "sub/c.png", "sub/ü.png", "e f.png")
SHARD_ROWS = 2
SETTINGS = {
    "extends": "demo",
    "labels": [{"name": "sky", "synonyms": ["blue sky"], "threshold": 0.3}, "tree", "person: person, people"],
    "background": ["water", "wall"],
    "manifest": {"shard_rows": 2, "exclude": ["*.tmp"]},
    "dense": {"attention": "csa", "cache": "logits", "window": 64},
    "refine": {"vote": 0.5, "method": "prompted"},
    "edit": {"mode": "cutout", "keep": ["tree"], "format": "png", "quality": 90},
    "run": {"workers": 0, "threads": 1, "max_pixels": 1000000},
}


def _records() -> list[dict[str, Any]]:
    return [
        {"file_name": name, "key": f"k{k}", "width": 4, "height": 3, "prompts": "sky; tree", "n": k, "x": k / 2}
        for k, name in enumerate(IMAGES)
    ]


def _separated(separator: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(_records()[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_records())
    return file.getvalue()


def _coco() -> dict[str, Any]:
    images = [{"id": k + 1, "file_name": name, "width": 4, "height": 3} for k, name in enumerate(IMAGES)]
    return {"info": {"description": "some images"}, "images": images, "annotations": [], "categories": []}


def _coco_truth() -> dict[str, Any]:
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 4, "height": 3} for k in (1, 2)]
    square = [0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0]
    segmentations: list[Any] = [[square], {"size": [3, 4], "counts": [0, 3, 9]}, {"size": [3, 4], "counts": "036"}]
    annotations = [
        {"id": k, "image_id": 1 + k % 2, "category_id": 1 + k % 2, "segmentation": one, "area": 4.0, "iscrowd": k % 2}
        for k, one in enumerate(segmentations)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}],
    }


def _text_of(make: Callable[[], str], suffix: str) -> Draw:
    def draw(random: Random) -> tuple[bytes, str, str]:
        if random.random() < 0.15:
            return *mutate_bytes(make().encode(), make().encode(), random), suffix
        return *mutate_text(make(), random), suffix

    return draw


def _json_of(make: Callable[[], Any], suffix: str) -> Draw:
    """Mutate the values, or the text, of a JSON file."""

    def draw(random: Random) -> tuple[bytes, str, str]:
        if random.random() < 0.3:
            return _text_of(lambda: _written(make(), suffix), suffix)(random)
        return _written(mutate_json(make(), random), suffix).encode(), "values", suffix

    return draw


def _written(tree: Any, suffix: str) -> str:
    lines = tree if suffix == ".jsonl" and isinstance(tree, list) else [tree]
    return "".join(f"{to_json(line)}\n" for line in lines)


def _bytes_of(make: Callable[[], bytes], suffix: str) -> Draw:
    return lambda random: (*mutate_bytes(make(), make(), random), suffix)


def _parquet_of_values(random: Random) -> tuple[bytes, str, str]:
    """Return a list in Parquet with columns of odd types and values."""
    columns: dict[str, Any] = {name: [one[name] for one in _records()] for name in _records()[0]}
    for _ in range(random.choice((1, 2, 3))):
        name = random.choice([*columns, "t", "url", "row", "path"])
        columns[name] = _column(random)
    table = pa.table(columns)
    if random.random() < 0.2:
        table = table.append_column(random.choice([*columns]), pa.array([None] * len(IMAGES)))
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=random.choice((2, 100)))
    return file.getvalue(), "columns", ".parquet"


def _column(random: Random) -> pa.Array:
    """Return a column of a random type with extreme values."""
    count = len(IMAGES)
    numbers = [random.choice((0, 1, -1, 2**31, 2**62, -(2**62), None)) for _ in range(count)]
    kind = random.choice(
        ("text", "bytes", "list", "struct", "dictionary", "null", "bool", "decimal", "date", "ns", "s", "duration")
    )
    texts = [random.choice((*IMAGES, "", "a\0b", "x" * 500, "\x1b[31m", "../a.png", "s3://b/a.png", None))] * count
    made: dict[str, Callable[[], pa.Array]] = {
        "text": lambda: pa.array(texts, pa.string()),
        "bytes": lambda: pa.array([b"\xff\xfe"] * count, pa.binary()),
        "list": lambda: pa.array([["sky", None]] * count, pa.list_(pa.string())),
        "struct": lambda: pa.array([{"bytes": b"x", "path": "a.png"}] * count),
        "dictionary": lambda: pa.array(texts, pa.string()).dictionary_encode(),
        "null": lambda: pa.nulls(count),
        "bool": lambda: pa.array([True, None] * count, pa.bool_())[:count],
        "decimal": lambda: pa.array([1] * count, pa.decimal128(30, 2)),
        "date": lambda: pa.array([2**31 - 1, -(2**31), 0, None, 1], pa.int32()).cast(pa.date32()),
        "ns": lambda: pa.array(numbers, pa.int64()).cast(pa.timestamp("ns", "UTC")),
        "s": lambda: pa.array([2**50, -(2**40), 0, None, 1], pa.timestamp("s")),
        "duration": lambda: pa.array(numbers, pa.int64()).cast(pa.duration("ns")),
    }
    return made[kind]()


@functools.cache
def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(file, "PNG")
    return file.getvalue()


@functools.cache
def good_manifest() -> bytes:
    with tempfile.TemporaryDirectory(prefix="ovseg-fuzz-") as folder:
        path = Path(folder) / "list.jsonl"
        records = [{**one, "file_name": f"/images/{one['file_name']}"} for one in _records()]
        path.write_text(_written([*records, {"file_name": str(path)}], ".jsonl"), encoding="utf-8")
        out = Path(folder) / "manifest.parquet"
        build_manifest([str(path)], out, SHARD_ROWS)
        return _without_paths(out)


def _without_paths(path: Path) -> bytes:
    """Return a manifest in which all paths are the same on every machine."""
    file = pq.ParquetFile(path)
    metadata = file.metadata.metadata
    out = io.BytesIO()
    with pq.ParquetWriter(out, file.schema_arrow, compression="zstd", use_dictionary=False) as writer:
        for group in range(file.num_row_groups):
            lines = file.read_row_group(group).to_pylist()
            for line in lines:
                line |= {"path": f"/images/{line['row']}.png", "key": f"k{line['row']}", "mtime_ns": 0}
                line["file_name"] = f"{line['row']}.png"
            writer.write_table(pa.Table.from_pylist(lines, file.schema_arrow), row_group_size=len(lines))
        writer.add_key_value_metadata({b"ovseg_batch.manifest": metadata[b"ovseg_batch.manifest"]})
    return out.getvalue()


def _manifest_of_values(random: Random) -> tuple[bytes, str, str]:
    """Return a manifest in which a few cells, or the description, hold other values."""
    file = pq.ParquetFile(io.BytesIO(good_manifest()))
    description = json.loads(file.metadata.metadata[b"ovseg_batch.manifest"])
    lines = [file.read_row_group(group).to_pylist() for group in range(file.num_row_groups)]
    schema = file.schema_arrow.remove_metadata()
    if random.random() < 0.4:
        description = mutate_json(description, random)
    for _ in range(random.choice((0, 1, 2))):
        field = random.choice([*schema])
        line = random.choice([one for group in lines for one in group])
        with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
            line[field.name] = pa.array([random.choice((*VALUES, -1, 2**40))], field.type)[0].as_py()
    if random.random() < 0.2:
        lines.insert(random.randrange(len(lines) + 1), [])
    if random.random() < 0.2:
        schema = schema.remove(random.randrange(len(schema)))
    schema = pa.schema([pa.field(field.name, field.type) for field in schema])
    out = io.BytesIO()
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for group in lines:
            kept = [{name: line[name] for name in schema.names} for line in group]
            writer.write_table(pa.Table.from_pylist(kept, schema), row_group_size=max(len(kept), 1))
        writer.add_key_value_metadata({"ovseg_batch.manifest": to_json(description)})
    return out.getvalue(), "values", ".parquet"


def _yaml() -> str:
    return yaml.safe_dump(SETTINGS, sort_keys=False)


def _list_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_records()), file, row_group_size=2)
    return file.getvalue()


def _map() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(file, "PNG")
    return file.getvalue()


def label_lines() -> str:
    return "sky\n# a comment\ntree: tree, trees\n\nperson: person, people, man\nroad\n"


#: Kind of file → how one is drawn, as (content, mutation, suffix).
DRAWS: dict[str, Draw] = {
    "txt": _text_of(lambda: "\n".join(IMAGES) + "\n", ".txt"),
    "csv": _text_of(lambda: _separated(","), ".csv"),
    "csv with ;": _text_of(lambda: _separated(";"), ".csv"),
    "tsv": _text_of(lambda: _separated("\t"), ".tsv"),
    "jsonl": _json_of(_records, ".jsonl"),
    "json list": _json_of(_records, ".json"),
    "coco": _json_of(_coco, ".json"),
    "parquet list, bytes": _bytes_of(_list_parquet, ".parquet"),
    "parquet list, values": _parquet_of_values,
    "manifest, bytes": _bytes_of(good_manifest, ".parquet"),
    "manifest, values": _manifest_of_values,
    "labels": _text_of(label_lines, ".txt"),
    "settings": _text_of(_yaml, ".yaml"),
    "settings, values": _json_of(lambda: SETTINGS, ".yaml"),
    "coco truth": _json_of(_coco_truth, ".json"),
    "class map": _bytes_of(_map, ".png"),
}
