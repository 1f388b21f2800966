"""The manifest: a Parquet file with one line per image and one row group per shard, so that shards are read separately.

The writer streams. It holds 8 bytes a row to find repeated keys, and 8 more for rows whose key is not their file name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import urllib.parse
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from ovseg_batch import failpoints
from ovseg_batch.errors import UsageError
from ovseg_batch.io import heif
from ovseg_batch.io.atomic import atomic_path, create
from ovseg_batch.io.entries import COCO_ID, SHOWN, Counts, Entry, Source, without_controls
from ovseg_batch.io.hashing import key_hash
from ovseg_batch.io.marks import IMAGE_IDS, has_mark
from ovseg_batch.io.names import Names
from ovseg_batch.io.records import ManifestRecord, reason
from ovseg_batch.io.remote import Remote, is_remote, scheme_of
from ovseg_batch.io.row_groups import read_group, table_of
from ovseg_batch.io.sources import open_source
from ovseg_batch.types import ImageRow

Hashes = NDArray[np.uint64]

FORMAT = b"ovseg_batch.manifest"
FORMAT_VERSION = 1
WRITING = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}  # shards are too small to benefit

COLUMNS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)
REVISION = "ovseg_revision"  # column: revision in which a row was added or last changed; null: the first
SHARED = "ovseg_shared"  # column: whether other rows have the same file name; absent where no rows share one
ADDED = (REVISION, SHARED)  # columns that exist only where a row needs them
OWN = frozenset([*COLUMNS.names, *ADDED])
UNHASHED = {"path", REVISION}  # columns that do not decide results


@dataclass(slots=True)
class Summary(Counts):
    """The size of the manifest that was written, and counts of skipped files."""

    rows: int = 0
    shards: int = 0


class Manifest:
    """A manifest file opened for reading."""

    def __init__(self, path: Path) -> None:
        self._path, file = path, pq.ParquetFile(path)
        self._file = file
        metadata = file.schema_arrow.metadata or {}
        record = ManifestRecord.model_validate_json((file.metadata.metadata or metadata)[FORMAT])
        self.rows: int = file.metadata.num_rows
        self.columns: list[str] = file.schema_arrow.names
        for one in COLUMNS:
            if one.name not in self.columns or file.schema_arrow.field(one.name).type != one.type:
                raise ValueError(f"it has no column {one.name} of the type {one.type}")
        self.shards: int = file.metadata.num_row_groups
        self.shard_rows, self.fingerprint = record.shard_rows, record.fingerprint
        self.origin = record.origin or record.fingerprint
        self.revision, self.revisions, self.remote = record.revision, record.revisions, record.remote

    @classmethod
    def open(cls, path: Path) -> Manifest:
        """Open a manifest. Raises UsageError where the file does not exist or is not a manifest of this program."""
        try:
            return cls(path)
        except FileNotFoundError:
            raise UsageError(f"There is no manifest {path}.") from None
        except (KeyError, ValueError, OSError) as error:
            why = reason(error) if isinstance(error, ValidationError) else without_controls(str(error))[:SHOWN]
            raise UsageError(f"{path} is not a manifest that `ovseg-batch manifest` wrote: {why}") from None

    @staticmethod
    def recognises(path: Path) -> bool:
        """Return whether a Parquet file is a manifest of this program."""
        return has_mark(path, FORMAT)

    def shard_of(self, row: int) -> int:
        """Return the shard that holds a row."""
        return row // self.shard_rows

    @property
    def span(self) -> int:
        """The largest possible row number plus 1. Removed rows leave gaps."""
        return self.shards * self.shard_rows

    @cached_property
    def has_coco_ids(self) -> bool:
        """Whether every row has a unique id from a COCO file."""
        if COCO_ID not in self.columns or self._file.schema_arrow.field(COCO_ID).type != pa.int64():
            return False
        found = np.fromiter((-1 if n is None else n for n in self.read_column(COCO_ID)), np.int64, self.rows)
        found.sort()
        return not len(found) or bool(found[0] >= 0 and (found[1:] != found[:-1]).all())

    @property
    def id_info(self) -> dict[str, str]:
        """Return the entries of `info` in COCO files that state the source of their ids."""
        return {IMAGE_IDS: COCO_ID} if self.has_coco_ids else {}

    def image_id(self, row: ImageRow) -> int:
        """Return the id of an image in COCO files: that of its INPUT if all images have one, otherwise row + 1."""
        return int(row.extra[COCO_ID]) if self.has_coco_ids else row.row + 1

    def rows_of(self, shard: int) -> int:
        """Return the number of rows in a shard."""
        return int(self._file.metadata.row_group(shard).num_rows)

    def read_column(self, name: str) -> Iterator[Any]:
        """Yield the values of one column in row order, reading one shard at a time."""
        for group in range(self.shards):
            yield from read_group(self._file, self._path, group, [name]).column(0).to_pylist()

    def read_paths(self) -> Iterator[tuple[int, str]]:
        """Yield the row number and the path or URL of every image, a shard at a time."""
        for group in range(self.shards):
            columns = read_group(self._file, self._path, group, ["row", "path"]).to_pydict()
            yield from zip(columns["row"], map(_path_from_text, columns["path"]), strict=True)

    def read_shard(self, shard: int) -> list[ImageRow]:
        """Return the rows of one shard. Other shards are not read."""
        return [
            ImageRow(
                **{name: line[name] for name in COLUMNS.names if name != "path"},
                path=_path_from_text(line["path"]),
                revision=line.get(REVISION) or 0,
                shared=bool(line.get(SHARED)),
                extra={name: value for name, value in line.items() if name not in OWN},
            )
            for line in self.read_lines(shard)
        ]

    def read_lines(self, shard: int, columns: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return the rows of a shard as dictionaries of the columns (None: all). Raises UsageError as `read_group`."""
        lines: list[dict[str, Any]] = read_group(self._file, self._path, shard, columns).to_pylist()
        return lines


def build_manifest(
    inputs: Sequence[str | Source],
    out: Path,
    shard_rows: int,
    remote: Remote | None = None,
    exclude: Sequence[str] = (),
) -> Summary:
    """List the images of `inputs` into the Parquet file `out`.

    Args:
        inputs: folders, globs, lists or COCO files (`sources.open_source`), or opened sources.
        out: replaced atomically; its bytes depend on the inputs alone.
        shard_rows: images per shard.
        remote: how buckets are listed. None: they are not listed.
        exclude: patterns of files and folders to skip. It has no effect on opened sources.

    Raises:
        UsageError: an INPUT is invalid, there is no image, no listed file exists, or two images have one key.
    """
    summary = Summary()
    sources = [one if isinstance(one, Source) else open_source(one, remote, exclude) for one in inputs]
    names = Names(sources)
    schema = _schema(sources)
    with failpoints.within("manifest"), atomic_path(out) as temporary:
        lines = (_line(entry, prefix, summary) for entry, prefix in names.numbered(sources))
        writer = _write(temporary, lines, schema, shard_rows, summary)
        while (repeated := _repeated(writer.hashes)).size:
            drop, renamed = _duplicates(temporary, set(repeated.tolist()), names, summary)
            if not (drop or renamed):
                break
            with _draft(temporary) as draft:
                writer = _write(temporary, names.renamed(_lines(draft), drop), schema, shard_rows, summary)
        shared = _repeated(writer.hashes + writer.names)
        if shared.size:
            schema = schema.append(pa.field(SHARED, pa.bool_()))
            with _draft(temporary) as draft:
                _write(temporary, _marked(draft, shared), schema, shard_rows, summary)
        for source in sources:
            summary.add(source.counts)
        written = Manifest.open(temporary)
        if COCO_ID in written.columns and not written.has_coco_ids:
            summary.numbered = summary.rows
        named = ", ".join(str(source.name) for source in sources)
        if summary.rows == 0:
            raise UsageError(f"There is no image in {named}.{summary.sentences()}")
        if summary.missing == summary.rows:
            raise UsageError(
                f"None of the {summary.rows} images of {named} exists "
                f"({next(iter(summary.examples['missing'].values()))} …). "
                "Relative paths start at the folder of the list."
            )
    return summary


def _schema(sources: Sequence[Source]) -> pa.Schema:
    extras: dict[str, pa.DataType] = {}
    for source in sources:
        for name, kind in source.fields:
            column = _column(name)
            if column not in OWN:
                extras[column] = kind if extras.get(column, kind) == kind else pa.string()
    return pa.schema([*COLUMNS, *(pa.field(name, kind) for name, kind in extras.items())])


def _column(name: str) -> str:
    """Return the manifest's name for a source's column: the same name, unless the manifest uses it already."""
    return f"source_{name}" if name in OWN - {"key", "width", "height"} else name


def _line(entry: Entry, prefix: str, summary: Summary) -> dict[str, Any]:
    size, mtime = entry.bytes, entry.mtime_ns
    if not is_remote(entry.path):
        try:
            status = os.stat(entry.path)
            size, mtime = status.st_size, status.st_mtime_ns
        except OSError:
            summary.count("missing", f"{entry.where}: {entry.file_name}", of=entry.path)
    if os.path.splitext(entry.path)[1].lower() in heif.SUFFIXES and not heif.register():
        summary.count("heif", entry.file_name)
    return {
        "key": entry.key or prefix + entry.file_name,
        "file_name": prefix + entry.file_name,
        "path": _text_from_path(entry.path),
        "bytes": size,
        "mtime_ns": mtime if mtime is None or abs(mtime) < 1 << 63 else None,  # 64-bit nanoseconds end in the year 2262
        "width": entry.width,
        "height": entry.height,
        **{_column(name): value for name, value in entry.extra.items()},
    }


class ManifestWriter:
    """Writes a manifest shard by shard.

    Attributes:
        hashes: 64-bit hash of every key.
        names: 64-bit hash of every file name that differs from its row's key.
        rows, shards: numbers written so far.
    """

    def __init__(self, path: Path, schema: pa.Schema, shard_rows: int) -> None:
        self.hashes, self.names = array("Q"), array("Q")
        self.rows = self.shards = 0
        self._schema, self._shard_rows = schema, shard_rows
        self._digest = hashlib.blake2b(digest_size=16)
        self._texts = [f.name for f in schema if f.type == pa.string() and f.name not in OWN]
        self._remote = Counter[str]()
        self._file = create(path)
        self._writer = pq.ParquetWriter(self._file, schema, **WRITING)
        self._shard: list[dict[str, Any]] = []

    def add(self, line: dict[str, Any]) -> None:
        """Add the next row. A row without a number is numbered from the first of its shard."""
        for name in self._texts:
            if line.get(name) is not None:
                line[name] = str(line[name])
        line.setdefault("row", self.shards * self._shard_rows + len(self._shard))
        hashed = {name: value for name, value in sorted(line.items()) if name not in UNHASHED}
        self._digest.update(json.dumps(hashed, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace"))
        self.hashes.append(key_hash(line["key"]))
        if line["file_name"] != line["key"]:
            self.names.append(key_hash(line["file_name"]))
        if _is_url(line["path"]):
            self._remote[scheme_of(line["path"])] += 1
        self.rows += 1
        self._shard.append(line)
        if len(self._shard) == self._shard_rows:
            self.end_shard()

    def end_shard(self) -> None:
        """End the shard, which may be partial or empty."""
        self._writer.write_table(table_of(self._shard, self._schema), row_group_size=max(len(self._shard), 1))
        self.shards += 1
        self._shard.clear()

    def close(self, more: Mapping[str, Any] | None = None) -> None:
        """Write the last shard and the metadata, to which `more` is added."""
        with self._file, self._writer:
            if self._shard:
                self.end_shard()
            description: dict[str, Any] = {
                "version": FORMAT_VERSION,
                "shard_rows": self._shard_rows,
                "fingerprint": self._digest.hexdigest(),
                **(more or {}),
            }
            if self._remote:
                description["remote"] = dict(sorted(self._remote.items()))
            self._writer.add_key_value_metadata({FORMAT.decode(): json.dumps(description)})


def _write(
    path: Path, lines: Iterator[dict[str, Any]], schema: pa.Schema, shard_rows: int, summary: Summary
) -> ManifestWriter:
    """Write the lines shard by shard."""
    writer = ManifestWriter(path, schema, shard_rows)
    with contextlib.closing(writer):
        for line in lines:
            writer.add(line)
    summary.rows, summary.shards = writer.rows, writer.shards
    return writer


def _repeated(hashes: array[int]) -> Hashes:
    """Return the hashes that occur more than once, in order."""
    ordered = np.sort(np.frombuffer(hashes, np.uint64))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _duplicates(path: Path, repeated: set[int], names: Names, summary: Summary) -> tuple[set[int], bool]:
    """Return the rows that repeat an image, and whether inputs got new prefixes to distinguish equal names.

    Raises:
        UsageError: two different images have one key, and prefixes cannot distinguish them.
    """
    first: dict[str, Mapping[str, Any]] = {}
    drop: set[int] = set()
    clashes: list[tuple[int, int]] = []
    clash: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None
    for line in _lines(path, ["row", "key", "file_name", "path", "bytes"]):
        if key_hash(line["key"]) not in repeated:
            continue
        other, number = first.setdefault(line["key"], line), line["row"]
        if other is line:
            continue
        if other["path"] == line["path"] and line["key"] == line["file_name"]:
            drop.add(number)
            summary.count("duplicates", line["file_name"])
            summary.missing -= line["bytes"] is None and not _is_url(line["path"])
        elif line["key"] == line["file_name"] == other["file_name"] and names.differ(other["row"], number):
            clashes.append((other["row"], number))
            clash = clash or (other, line)
        else:
            raise _same_key(other, line)
    renamed = names.tell_apart(clashes)
    if clash and not renamed:
        raise _same_key(*clash)
    return drop, renamed


def _same_key(one: Mapping[str, Any], other: Mapping[str, Any]) -> UsageError:
    return UsageError(
        f"Rows {one['row']} ({one['path']}) and {other['row']} ({other['path']}) have the same key "
        f"{other['key']!r}. Keys name the results: give each row its own."
    )


def _marked(path: Path, shared: Hashes) -> Iterator[dict[str, Any]]:
    """Yield the rows, each with whether other rows have its file name."""
    for line in _lines(path):
        name = key_hash(line["file_name"])
        place = int(np.searchsorted(shared, np.uint64(name)))
        yield {**line, SHARED: place < shared.size and int(shared[place]) == name}


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Rename a file while it is written again. Delete it afterwards."""
    draft = path.with_suffix(".draft")
    path.rename(draft)
    try:
        yield draft
    finally:
        draft.unlink()


def _lines(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from read_group(file, path, group, columns).to_pylist()


def _is_url(text: str) -> bool:
    return is_remote(text) and not text.startswith("file://")


def _text_from_path(path: str) -> str:
    """Return the path, or a file: URI where the path is not UTF-8, which a string column could not hold."""
    try:
        path.encode("utf-8")
        return path
    except UnicodeEncodeError:
        return f"file://{urllib.parse.quote(os.fsencode(path))}"


def _path_from_text(text: str) -> str:
    if text.startswith("file://"):
        return os.fsdecode(urllib.parse.unquote_to_bytes(text.removeprefix("file://")))
    return text
