"""Lists of images: text, CSV, JSON lines, Parquet and COCO files, each read as a stream in its own order."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io import remote as urls
from ovseg_batch.io.entries import COCO_ID, Entry, Source, plain
from ovseg_batch.io.marks import DESCRIPTION, IMAGE_IDS, MANIFEST
from ovseg_batch.io.records import parse_json
from ovseg_batch.io.remote import is_remote

PATH_COLUMNS = ("file_name", "path", "image", "image_path", "filepath", "filename")
LARGEST_ID = 1 << 63  # one more than the manifest's column of ids holds
SHOWN = 60  # characters of a value that is refused
TRIED = 10  # images that are looked for before a COCO file counts as moved away from its images


def _text(path: Path) -> Source:
    def entries() -> Iterator[Entry]:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _located(path, line.rstrip("\r\n"), f"{path} line {number}", {})

    return Source(str(path), [], entries())


def _csv(path: Path) -> Source:
    with path.open(encoding="utf-8-sig", newline="") as file:
        columns = next(csv.reader(file), [])
    column = _path_column(path, columns)

    def entries() -> Iterator[Entry]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for record in reader:
                known = {name: record[name] for name in columns}
                yield _record(path, known, column, f"{path} line {reader.line_num}")

    return Source(str(path), [(name, pa.string()) for name in columns if name != column], entries())


def _json_lines(path: Path) -> Source:
    kinds: dict[str, pa.DataType] = {}
    for _, record in _json_records(path):
        for name, value in record.items():
            kind = _kind(value)
            if kind is not None:
                kinds[name] = kind if kinds.get(name, kind) == kind else pa.string()
            else:
                kinds.setdefault(name, pa.null())
    column = _path_column(path, list(kinds))

    def entries() -> Iterator[Entry]:
        for number, record in _json_records(path):
            if column not in record:
                raise UsageError(f"{path} line {number} has no {column!r}.")
            known = {name: _as_kind(value, kinds[name]) for name, value in record.items()}
            yield _record(path, known, column, f"{path} line {number}")

    fields = [(name, pa.string() if kind == pa.null() else kind) for name, kind in kinds.items() if name != column]
    return Source(str(path), fields, entries())


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError as error:
                raise UsageError(f"{path} line {number} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise UsageError(f"{path} line {number} is not a JSON object.")
            yield number, record


def _kind(value: Any) -> pa.DataType | None:
    if value is None:
        return None
    kinds: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return kinds.get(type(value), pa.string())


def _as_kind(value: Any, kind: pa.DataType) -> Any:
    """The value as its column holds it; what is no plain value is kept as JSON text."""
    if value is None or kind != pa.string() or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _parquet(path: Path) -> Source:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {error}") from None
    schema = file.schema_arrow
    column = _path_column(path, schema.names)

    def entries() -> Iterator[Entry]:
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                yield _record(path, record, column, f"{path} row {number}")
                number += 1

    return Source(str(path), [(f.name, f.type) for f in schema if f.name != column], entries())


def _coco(path: Path) -> Source:
    try:
        content = parse_json(path.read_bytes())
        images = content["images"]
        for image in images:
            image["file_name"] + "", image["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a COCO file: it needs `images`, each with `id` and `file_name` ({error!r})."
        ) from None
    ids = _coco_ids(path, images)
    paths = _paths_of_run(path, content)

    def entries() -> Iterator[Entry]:
        for number, image in zip(ids, images, strict=True):
            where = f"{path} image {number}"
            if number in paths:
                size = _pixels(image.get("width")), _pixels(image.get("height"))
                yield Entry(paths[number], plain(image["file_name"]), where, None, *size, {COCO_ID: number})
            else:
                record = {name: image.get(name) for name in ("file_name", "width", "height")}
                yield _record(path, {**record, COCO_ID: number}, "file_name", where)

    return Source(str(path), [(COCO_ID, pa.int64())], entries())


def _coco_ids(path: Path, images: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the ids of images.

    Raises:
        UsageError: an id that is no whole number of 0 or more that 64 bits hold, or that two images have.
    """
    names: dict[int, str] = {}
    for image in images:
        number, name = image["id"], image["file_name"]
        whole = type(number) is int or (type(number) is float and number.is_integer())
        if not whole or not 0 <= number < LARGEST_ID:
            raise UsageError(
                f"{path}: the image {name} has the id {json.dumps(number)[:SHOWN]}. Ids are whole numbers from 0 to "
                f"{LARGEST_ID - 1}; give each image its own."
            )
        if (other := names.setdefault(int(number), name)) != name:
            raise UsageError(
                f"{path}: the images {other} and {name} have the same id {int(number)}. Give each its own."
            )
    return [int(image["id"]) for image in images]


def _paths_of_run(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Return the path of each image id of a COCO file that a run wrote; empty for all other COCO files.

    The file names in such a file start at the INPUT of the run. The paths are in the manifest beside it.

    Raises:
        UsageError: a run wrote the file, but the manifest of the run is not beside it, and neither are the images.
    """
    from ovseg_batch.io.manifest import Manifest  # which imports this module

    info = content.get("info")
    if not isinstance(info, Mapping) or info.get("description") != DESCRIPTION:
        return {}
    manifest = path.with_name(MANIFEST)
    if Manifest.recognises(manifest):
        found = Manifest.open(manifest)
        if found.fingerprint == info.get("manifest"):
            own = info.get(IMAGE_IDS) == COCO_ID and found.has_coco_ids
            ids = found.read_column(COCO_ID) if own else (row + 1 for row in found.read_column("row"))
            return {number: where for number, (_, where) in zip(ids, found.read_paths(), strict=True)}
    names = [image["file_name"] for image in content["images"][:TRIED]]
    if names and not any((path.parent / name).exists() for name in names):
        raise UsageError(
            f"The images of {path} cannot be found. A run wrote the file, and its file names start at the INPUT of "
            f"that run. Give annotations.json in the workdir of the run, beside its {MANIFEST}; or move {path.name} "
            "into the folder of the images."
        )
    return {}


def _path_column(path: Path, columns: list[str]) -> str:
    for name in PATH_COLUMNS:
        if name in columns:
            return name
    hints = (nearest(name, PATH_COLUMNS) for name in columns)
    raise UsageError(
        f"{path} has no column with the images' paths. It needs one named {', '.join(PATH_COLUMNS[:-1])} or "
        f"{PATH_COLUMNS[-1]}; it has: {', '.join(columns) or 'none'}.{next((h for h in hints if h), '')}"
    )


def _record(source: Path, record: Mapping[str, Any], column: str, where: str) -> Entry:
    if not record[column]:
        raise UsageError(f"{where}: {column} is empty.")
    return _located(source, str(record[column]), where, {k: v for k, v in record.items() if k != column})


def _located(source: Path, text: str, where: str, extra: dict[str, Any]) -> Entry:
    """An entry of a list; relative paths start at the list's own folder."""
    if is_remote(text):
        full, name = text.strip(), _url_name(text.strip(), where)
    else:
        base = os.path.abspath(source.parent)
        full = os.path.normpath(os.path.join(base, text))
        inside = full.startswith(base.rstrip("/") + "/")
        name = os.path.relpath(full, base) if inside else full.lstrip("/")
    key = extra.pop("key", None)
    width, height = _pixels(extra.pop("width", None)), _pixels(extra.pop("height", None))
    return Entry(full, plain(name), where, None if key in (None, "") else str(key), width, height, extra)


def _url_name(url: str, where: str) -> str:
    try:
        urls.scheme_of(url)
        return urls.name_of(url)
    except (UsageError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from None


def _pixels(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


#: The reader of each kind of list, by suffix.
READERS: dict[str, Callable[[Path], Source]] = {
    ".txt": _text,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".json": _coco,
}
