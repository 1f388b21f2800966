"""Where the manifest's rows come from: folders, globs and lists, each read as a stream in a fixed order."""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io import remote as urls
from ovseg_batch.io.remote import Remote, is_remote

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .ppm .pgm .pbm .pnm .avif .jp2 .heic .heif".split()
)
PATH_COLUMNS = ("file_name", "path", "image", "image_path", "filepath", "filename")
LIST_SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet", ".json")

Field = tuple[str, pa.DataType]


@dataclass(frozen=True, slots=True)
class Entry:
    """An image as its source names it. `where` says in which line or folder, for messages.

    `bytes` and `mtime_ns` are known where a listing told them; of a local file they are asked later.
    """

    path: str
    file_name: str
    where: str
    key: str | None = None
    width: int | None = None
    height: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    bytes: int | None = None
    mtime_ns: int | None = None


@dataclass(slots=True)
class Source:
    """One INPUT: what it adds to the manifest's columns, and its entries as often as they are asked for."""

    name: str
    fields: list[Field]
    entries: Iterator[Entry]
    folder: str = ""  # its own name, of a folder
    skipped: int = 0  # files of a folder that are no images by their names; known once `entries` has ended


def open_source(text: str, remote: Remote | None = None) -> Source:
    """What INPUT means; `remote` is how buckets are listed, None where nothing remote is looked at.

    Raises:
        UsageError: nothing there, or a kind of input that is not understood.
    """
    if is_remote(text):
        return _url(text, remote)
    path = Path(text)
    if path.is_dir():
        metadata = [m for suffix in (".csv", ".jsonl", ".parquet") if (m := path / f"metadata{suffix}").is_file()]
        return open_source(str(metadata[0])) if metadata else _folder(path)
    if not path.exists():
        if glob.has_magic(text):
            return _glob(text)
        near = nearest(path.name, (e.name for e in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise UsageError(f"There is no file or folder {text}.{near}")
    if path.suffix.lower() in LIST_SUFFIXES:
        readers = {".txt": _text, ".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet, ".json": _coco}
        return readers[path.suffix.lower()](path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Source(text, [], iter([Entry(str(path.absolute()), plain(path.name), text)]))
    raise UsageError(
        f"{text} is no folder, image or list. INPUT is a folder, a glob, a {' '.join(LIST_SUFFIXES[:-1])} list, "
        "or a COCO .json."
    )


def plain(name: str) -> str:
    """A file name that any format can hold: bytes that are not UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _folder(root: Path) -> Source:
    source = Source(str(root), [], iter(()), folder=root.absolute().name)
    source.entries = _walk(root.absolute(), source)
    return source


def _walk(root: Path, source: Source) -> Iterator[Entry]:
    """Images under `root`, depth first, each folder in the order of its names; hidden ones are left out."""

    def visit(folder: str, relative: str, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:  # a link back to a folder we are in
            return
        names, folders = [], set()  # names alone: millions of them in one folder must fit
        with os.scandir(folder) as listing:
            for entry in listing:
                if not entry.name.startswith("."):
                    names.append(entry.name)
                    with contextlib.suppress(OSError):  # a link to itself is no folder
                        if entry.is_dir():
                            folders.add(entry.name)
        for name in sorted(names, key=os.fsencode):
            if name in folders:
                yield from visit(f"{folder}/{name}", f"{relative}{name}/", above | {identity})
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Entry(f"{folder}/{name}", plain(relative + name), str(root))
            else:
                source.skipped += 1

    yield from visit(str(root), "", frozenset())


def _url(url: str, remote: Remote | None) -> Source:
    """One image, or a folder of a bucket."""
    scheme = urls.scheme_of(url)
    name = urls.name_of(url)
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        return Source(urls.shown(url), [], iter([Entry(url, plain(name), urls.shown(url))]))
    if scheme in ("http", "https"):
        raise UsageError(
            f"{urls.shown(url)} is no image by its name, and a web server cannot be listed. "
            "Write the images' URLs into a list (.txt, .csv, .jsonl, .parquet)."
        )
    if remote is None:
        raise UsageError(f"{url} is on a network. Give --allow-remote to have it listed and its images fetched.")
    source = Source(url, [], iter(()), folder=name.rpartition("/")[2])
    source.entries = _bucket(url, remote, source)
    return source


def _bucket(root: str, remote: Remote, source: Source) -> Iterator[Entry]:
    """Images under a folder of a bucket, in the order of `_walk`."""

    def visit(url: str, relative: str) -> Iterator[Entry]:
        for found in urls.listing(url, remote):
            name = found["name"]
            if name.startswith("."):
                continue
            if found["folder"]:
                yield from visit(found["url"], f"{relative}{name}/")
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                size, mtime = found["bytes"], found["mtime_ns"]
                yield Entry(found["url"], plain(relative + name), root, bytes=size, mtime_ns=mtime)
            else:
                source.skipped += 1

    yield from visit(root, "")


def _glob(pattern: str) -> Source:
    fixed = Path(*_before_magic(Path(pattern).absolute().parts))

    def entries() -> Iterator[Entry]:
        for found in sorted(glob.iglob(pattern, recursive=True), key=os.fsencode):
            path = Path(found).absolute()
            if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                yield Entry(str(path), plain(path.relative_to(fixed).as_posix()), pattern)
            elif path.is_file():
                source.skipped += 1

    source = Source(pattern, [], iter(()))
    source.entries = entries()
    return source


def _before_magic(parts: tuple[str, ...]) -> Iterator[str]:
    for part in parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


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
                record = json.loads(line)
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
        images = json.loads(path.read_bytes())["images"]
        for image in images:
            image["file_name"] + "", int(image["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a COCO file: it needs `images`, each with `id` and `file_name` ({error!r})."
        ) from None

    def entries() -> Iterator[Entry]:
        for image in images:
            record = {name: image.get(name) for name in ("file_name", "width", "height")}
            yield _record(path, {**record, "coco_id": int(image["id"])}, "file_name", f"{path} image {image['id']}")

    return Source(str(path), [("coco_id", pa.int64())], entries())


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
