"""Read lists of images as streams: text, CSV, JSON lines, Parquet and COCO files."""

from __future__ import annotations

import codecs
import contextlib
import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from ovseg_batch.errors import UsageError
from ovseg_batch.io.columns import PATH_COLUMNS, find_column, is_utf8, locate, make_entry, path_column, pixels_or_none
from ovseg_batch.io.entries import COCO_ID, SHOWN, Entry, Source, plain
from ovseg_batch.io.marks import DESCRIPTION, IMAGE_IDS, MANIFEST
from ovseg_batch.io.parquet_lists import read_parquet
from ovseg_batch.io.records import parse_json

SEPARATORS = ",;\t|"
LARGEST_ID = 1 << 63  # first id that the manifest's 64-bit column cannot hold
PROBED_IMAGES = 10  # if none of the first images exists, the COCO file was moved away from its images
LONGEST_INTEGER = 63  # bits


@contextlib.contextmanager
def _opened(path: Path, errors: str = "strict", newline: str | None = None) -> Iterator[TextIO]:
    """Open a list as UTF-8.

    Raises:
        UsageError: it has another encoding, or cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", errors=errors, newline=newline) as file:
            yield file
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None


def _not_utf8(path: Path) -> UsageError:
    return UsageError(f"{path} is not UTF-8 text. It seems to be {_encoding(path)}. Save it as UTF-8.")


def _encoding(path: Path) -> str:
    """Return the name of the encoding that a file seems to have."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        return "UTF-16"
    return "Latin-1 (Windows-1252)"


def _text(path: Path) -> Source:
    def entries() -> Iterator[Entry]:
        with _opened(path, "surrogateescape") as file:  # Linux allows names that are not UTF-8
            for number, line in enumerate(file, start=1):
                if number == 1 and ("\0" in line or line.startswith(("\udcff\udcfe", "\udcfe\udcff"))):
                    raise _not_utf8(path)
                if line.strip():
                    entry = locate(path, line.rstrip("\r\n"), f"{path} line {number}", {})
                    if not line.isascii() and not is_utf8(entry.path) and not os.path.lexists(entry.path):
                        raise _not_utf8(path)
                    yield entry

    return Source(str(path), [], entries())


def _csv(path: Path) -> Source:
    separator, skipped, columns = _header(path)
    column = path_column(path, columns)

    def entries() -> Iterator[Entry]:
        for number, values in itertools.islice(_csv_lines(path, separator), skipped + 1, None):
            if values:
                known = dict(zip(columns, values + [None] * len(columns), strict=False))
                yield make_entry(path, known, column, f"{path} line {number}")

    return Source(str(path), [(name, pa.string()) for name in columns if name and name != column], entries())


def _header(path: Path) -> tuple[str, int, list[str]]:
    """Return a CSV file's separator, the number of lines above its header, and its columns.

    A line `sep=;` names the separator. Without it, the first separator that yields a path column is used.
    """
    with _opened(path, newline="") as file:
        first = file.readline().strip().strip('"').lower()
    if first.startswith("sep=") and len(first) <= len("sep=;"):
        separator = first.removeprefix("sep=") or "\t"
        return separator, 1, next((values for _, values in itertools.islice(_csv_lines(path, separator), 1, None)), [])
    separators = sorted(SEPARATORS, key=lambda one: one != "\t") if path.suffix.lower() == ".tsv" else SEPARATORS
    found = {one: next((values for _, values in _csv_lines(path, one)), []) for one in separators}
    for separator, columns in found.items():
        if find_column(columns) is not None:
            return separator, 0, columns
    separator = max(found, key=lambda one: len(found[one]))
    return separator, 0, found[separator]


def _csv_lines(path: Path, separator: str) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of the last line of every record, and its values."""
    with _opened(path, newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        try:
            for values in reader:
                yield reader.line_num, values
        except csv.Error as error:
            raise UsageError(f"{path} line {reader.line_num} is not CSV: {error}.") from None


def _json_lines(path: Path) -> Source:
    return _objects(path, lambda: _json_records(path))


def _json(path: Path) -> Source:
    """Open a COCO file, or a JSON list of objects or of paths."""
    try:
        with path.open("rb") as file:
            is_list = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not is_list:
        return _coco(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    records = [{PATH_COLUMNS[0]: one} if isinstance(one, str) else one for one in content]
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise UsageError(f"{path} entry {number} is no JSON object and no path.")
    return _objects(path, lambda: ((f"{path} entry {number}", record) for number, record in enumerate(records)))


def _objects(path: Path, records: Callable[[], Iterable[tuple[str, dict[str, Any]]]]) -> Source:
    """Open a list of JSON objects. Each column has the type of its values, or is text."""
    kinds: dict[str, pa.DataType] = {}
    for _, record in records():
        for name, value in record.items():
            kind = _kind(value)
            if kind is not None:
                kinds[name] = kind if kinds.get(name, kind) == kind else pa.string()
            else:
                kinds.setdefault(name, pa.null())
    column = path_column(path, list(kinds))

    def entries() -> Iterator[Entry]:
        for where, record in records():
            if column not in record:
                raise UsageError(f"{where} has no {column!r}.")
            known = {name: value if name == column else _as_kind(value, kinds[name]) for name, value in record.items()}
            yield make_entry(path, known, column, where)

    fields = [(name, pa.string() if kind == pa.null() else kind) for name, kind in kinds.items() if name != column]
    return Source(str(path), fields, entries())


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                record = parse_json(line)
            except ValueError as error:
                raise UsageError(f"{where} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise UsageError(f"{where} is not a JSON object.")
            yield where, record


def _kind(value: Any) -> pa.DataType | None:
    if value is None:
        return None
    if isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
        return pa.string()
    kinds: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return kinds.get(type(value), pa.string())


def _as_kind(value: Any, kind: pa.DataType) -> Any:
    """Convert a value to the type of its column. Nested values become JSON text."""
    if value is None or kind != pa.string() or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


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
                size = pixels_or_none(image.get("width")), pixels_or_none(image.get("height"))
                yield Entry(paths[number], plain(image["file_name"]), where, None, *size, {COCO_ID: number})
            else:
                record = {name: image.get(name) for name in ("file_name", "width", "height")}
                yield make_entry(path, {**record, COCO_ID: number}, "file_name", where)

    return Source(str(path), [(COCO_ID, pa.int64())], entries())


def _coco_ids(path: Path, images: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the ids of images.

    Raises:
        UsageError: an id is not a non-negative integer of 63 bits, or two images have the same id.
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
        UsageError: a run wrote the file, but neither the manifest of the run nor the images are in its folder.
    """
    from ovseg_batch.io.manifest import Manifest  # imported here: that module imports this one

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
    names = [image["file_name"] for image in content["images"][:PROBED_IMAGES]]
    if names and not any((path.parent / name).exists() for name in names):
        raise UsageError(
            f"The images of {path} cannot be found. A run wrote the file, and its file names start at the INPUT of "
            f"that run. Give annotations.json in the workdir of the run, beside its {MANIFEST}; or move {path.name} "
            "into the folder of the images."
        )
    return {}


#: The reader of each kind of list, by suffix.
READERS: dict[str, Callable[[Path], Source]] = {
    ".txt": _text,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".parquet": read_parquet,
    ".json": _json,
}
