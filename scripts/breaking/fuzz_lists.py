"""Mutated lists of images, manifests, labels, settings and truths, given to the functions that the commands call."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from breaking.fuzzing import Input, Violation
from breaking.mutations import VALUES, mutate_bytes, mutate_json, mutate_text, to_json
from ovseg_batch import datasets, intake
from ovseg_batch.config import dump_config, load_config
from ovseg_batch.errors import OvsegError
from ovseg_batch.evaluate.truth import TruthReader
from ovseg_batch.io.manifest import Manifest, Summary, build_manifest
from ovseg_batch.io.updating import update_manifest
from ovseg_batch.planning import check_manifest
from ovseg_batch.settings.labels import format_labels, read_labels
from ovseg_batch.settings.running import ManifestConfig
from ovseg_batch.stages.registry import make_vocabulary
from ovseg_batch.store import Workdir

IMAGES = ("a.png", "b.png", "sub/c.png", "sub/ü.png", "e f.png")
SHARD_ROWS = 2
LONGEST_MESSAGE = 4000  # characters
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
LABELS = "sky; tree; road"  # words of the embedded model
CONFIG = load_config("demo", flags={"labels": LABELS}, environment={})
DATASET = "coco-object"
TRUTH = "annotations/instances_val2017.json"
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


class Lists:
    """Files of lists, manifests, labels, settings and truths."""

    name = "lists"

    def draw(self, seed: int) -> Input:
        """Return the mutated file of a seed."""
        random = Random(f"lists:{seed}")
        form = [*FORMS][seed % len(FORMS)]
        content, mutation, suffix = FORMS[form][0](random)
        return Input(form, mutation, f"list{suffix}", content)

    def check(self, given: Input) -> bool:
        """Write the file beside images and give it to the product."""
        with tempfile.TemporaryDirectory(prefix="ovseg-fuzz-") as folder:
            root = Path(folder) / "lists" / "a"  # a list may name the folder above, which must not change
            root.mkdir(parents=True)
            for name in IMAGES:
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_bytes(_png())
            path = root / given.name
            path.write_bytes(given.content)
            try:
                FORMS[given.form][1](path)
            except OvsegError as error:
                check_message(str(error))
                return False
            return True


def check_message(text: str) -> None:
    """Check that a refusal can be printed.

    Raises:
        Violation: it is empty or very long, or holds half of a surrogate pair or what controls a terminal.
    """
    if not text.strip():
        raise Violation("it is refused without a word")
    if len(text) > LONGEST_MESSAGE:
        raise Violation(f"the refusal has {len(text)} characters: {text[:500]}")
    if found := CONTROLS.search(text):
        raise Violation(f"the refusal holds {found[0]!r}: {text[:500]!r}")


# --- what is done with each file ---


def _list(path: Path) -> None:
    """List the file as `manifest` does, and read the manifest back."""
    out = path.parent / "out" / "manifest.parquet"
    out.parent.mkdir()
    listed = build_manifest([str(path)], out, SHARD_ROWS)
    _accounted(path, listed)
    _read(out, listed.rows)
    again = path.parent / "out" / "again.parquet"
    build_manifest([str(path)], again, SHARD_ROWS)
    if again.read_bytes() != out.read_bytes():
        raise Violation("listed twice, it gives two manifests")


def _accounted(path: Path, listed: Summary) -> None:
    """Check that the rows and the notes speak of every entry."""
    for note in listed.notes():
        check_message(note)
    entries = COUNTERS[path.suffix](path)
    if entries is not None and entries != listed.rows + listed.duplicates + listed.excluded:
        raise Violation(f"{entries} entries, {listed.rows} rows, {listed.duplicates} of them listed twice")


def _read(path: Path, rows: int | None = None) -> None:
    """Read a manifest as the commands do, and check that no row is lost or there twice."""
    manifest = Manifest.open(path)
    check_manifest(manifest, CONFIG)
    lines = [row for shard in range(manifest.shards) for row in manifest.read_shard(shard)]
    if len(lines) != manifest.rows or (rows is not None and rows != len(lines)):
        raise Violation(f"{rows} rows were listed, {manifest.rows} written and {len(lines)} read")
    if len({row.row for row in lines}) != len(lines) or len({row.key for row in lines}) != len(lines):
        raise Violation("two rows have one number or one key")
    for row in lines:
        if rows is not None and not all((row.key, row.file_name, row.path)):
            raise Violation(f"a listed row has no key, name or path: {row}")
        os.fsencode(row.path)
        f"{row.key}{row.file_name}".encode()
        with contextlib.suppress(ValueError):  # charged to the row
            make_vocabulary(CONFIG).left_out(row.extra.get("prompts"))
    if [where for _, where in manifest.read_paths()] != [row.path for row in lines]:
        raise Violation("read_paths and read_shard differ")


def _manifest(path: Path) -> None:
    """Take a ready-made manifest into a workdir, and bring a good one up to date with it."""
    workdir = Workdir(path.parent / "run")
    workdir.create()
    intake.prepare_manifest([str(path)], workdir, ManifestConfig(shard_rows=SHARD_ROWS), None)
    _read(workdir.manifest)
    known = path.parent / "known.parquet"
    known.write_bytes(_good_manifest())
    update_manifest(known, path)
    _read(known)


def _labels(path: Path) -> None:
    config = load_config("demo", flags={"labels": read_labels([f"@{path}"])}, environment={})
    _same_config(path, config)
    if all(_plain_words([label.name, *label.synonyms]) for label in config.labels):
        text = format_labels((label.name, label.synonyms) for label in config.labels)
        names = [label.name for label in load_config("demo", flags={"labels": text}, environment={}).labels]
        if names != [label.name for label in config.labels]:
            raise Violation(f"the labels written as a text are other labels: {names}")


def _plain_words(words: list[str]) -> bool:
    """Return whether words can stand in a text of labels: no separators and quotes."""
    return not any(re.search("[,;:，、；：\n\"'@«»“”„‘’./]", word) or word != word.strip() for word in words)


def _settings(path: Path) -> None:
    _same_config(path, load_config(path, environment={}))


def _same_config(path: Path, config: Any) -> None:
    """Check that settings are written as they are read back."""
    written = path.parent / "written.yaml"
    written.write_text(dump_config(config), encoding="utf-8")
    if load_config(written, environment={}) != config:
        raise Violation("config.yaml does not give the settings back")


def _truth(path: Path) -> None:
    """List a data set by its truth, as `manifest --dataset coco-object --oracle` does, and read every truth."""
    target = path.parent / TRUTH
    target.parent.mkdir()
    (path.parent / "val2017").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (path.parent / "val2017" / name).write_bytes(_png())
    path.rename(target)
    reader = TruthReader(datasets.load(DATASET), path.parent)
    out = path.parent / "manifest.parquet"
    listed = build_manifest([reader.source(oracle=True)], out, SHARD_ROWS)
    if listed.rows != 2:
        raise Violation(f"two images, {listed.rows} rows")
    _read(out, 2)
    for name in ("1.jpg", "2.jpg"):
        truth = reader.read(name)
        for instance in truth.instances or []:
            if not (isinstance(instance.category, str) and 0 <= instance.area < float("inf")):
                raise Violation(f"an instance is {instance}")


def _class_map(path: Path) -> None:
    """Read a class map and a map of instances."""
    (path.parent / "images").mkdir()
    (path.parent / "truth").mkdir()
    (path.parent / "images" / "a.png").write_bytes(_png())
    for kind in ("classes", "instances"):
        (path.parent / "truth" / f"a.png.{kind}.png").write_bytes(path.read_bytes())
    reader = TruthReader(datasets.load("scenes"), path.parent)
    out = path.parent / "manifest.parquet"
    _read(out, build_manifest([reader.source(oracle=True)], out, SHARD_ROWS).rows)


# --- how many entries a list has, counted another way ---


def _text_lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in re.split("\r\n|\r|\n", path.read_bytes().decode("utf-8-sig", "replace")))


def _csv_records(path: Path) -> int | None:
    """Return the records below the header; None with a line `sep=`."""
    text = path.read_bytes().decode("utf-8-sig")
    if text.lstrip('"').lower().startswith("sep="):
        return None
    counts = {
        sum(1 for values in csv.reader(io.StringIO(text, newline=""), delimiter=one) if values) - 1 for one in ",;\t|"
    }
    return counts.pop() if len(counts) == 1 and not text[:1].isspace() else None


def _json_lines(path: Path) -> int:
    return _text_lines(path)


def _json_entries(path: Path) -> int:
    content = json.loads(path.read_bytes())  # in any of the encodings of Unicode
    return len(content if isinstance(content, list) else content["images"])


COUNTERS: dict[str, Callable[[Path], int | None]] = {
    ".txt": _text_lines,
    ".csv": _csv_records,
    ".tsv": _csv_records,
    ".jsonl": _json_lines,
    ".json": _json_entries,
    ".parquet": lambda path: int(pq.ParquetFile(path).metadata.num_rows),
}

# --- the files ---


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


def _text_of(make: Callable[[], str], suffix: str) -> Callable[[Random], tuple[bytes, str, str]]:
    def draw(random: Random) -> tuple[bytes, str, str]:
        if random.random() < 0.15:
            return *mutate_bytes(make().encode(), make().encode(), random), suffix
        return *mutate_text(make(), random), suffix

    return draw


def _json_of(make: Callable[[], Any], suffix: str) -> Callable[[Random], tuple[bytes, str, str]]:
    """Mutate the values, or the text, of a JSON file."""

    def draw(random: Random) -> tuple[bytes, str, str]:
        if random.random() < 0.3:
            return _text_of(lambda: _written(make(), suffix), suffix)(random)
        return _written(mutate_json(make(), random), suffix).encode(), "values", suffix

    return draw


def _written(tree: Any, suffix: str) -> str:
    lines = tree if suffix == ".jsonl" and isinstance(tree, list) else [tree]
    return "".join(f"{to_json(line)}\n" for line in lines)


def _bytes_of(make: Callable[[], bytes], suffix: str) -> Callable[[Random], tuple[bytes, str, str]]:
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
def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(file, "PNG")
    return file.getvalue()


@functools.cache
def _good_manifest() -> bytes:
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
    file = pq.ParquetFile(io.BytesIO(_good_manifest()))
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
    import yaml

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


Draw = Callable[[Random], tuple[bytes, str, str]]
#: Kind of file → how it is drawn, as (content, mutation, suffix), and what reads it.
FORMS: dict[str, tuple[Draw, Callable[[Path], None]]] = {
    "txt": (_text_of(lambda: "\n".join(IMAGES) + "\n", ".txt"), _list),
    "csv": (_text_of(lambda: _separated(","), ".csv"), _list),
    "csv with ;": (_text_of(lambda: _separated(";"), ".csv"), _list),
    "tsv": (_text_of(lambda: _separated("\t"), ".tsv"), _list),
    "jsonl": (_json_of(_records, ".jsonl"), _list),
    "json list": (_json_of(_records, ".json"), _list),
    "coco": (_json_of(_coco, ".json"), _list),
    "parquet list, bytes": (_bytes_of(_list_parquet, ".parquet"), _list),
    "parquet list, values": (_parquet_of_values, _list),
    "manifest, bytes": (_bytes_of(_good_manifest, ".parquet"), _manifest),
    "manifest, values": (_manifest_of_values, _manifest),
    "labels": (_text_of(label_lines, ".txt"), _labels),
    "settings": (_text_of(_yaml, ".yaml"), _settings),
    "settings, values": (_json_of(lambda: SETTINGS, ".yaml"), _settings),
    "coco truth": (_json_of(_coco_truth, ".json"), _truth),
    "class map": (_bytes_of(_map, ".png"), _class_map),
}
