"""The manifest: one Parquet file with a line per image, one row group per shard, so that a shard is read alone.

Writing it streams: what stays in memory is 8 bytes a row, to find keys that are used twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import urllib.parse
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch import failpoints
from ovseg_batch.errors import UsageError
from ovseg_batch.io.atomic import atomic_path, create
from ovseg_batch.io.entries import COCO_ID, Entry, Source
from ovseg_batch.io.marks import IMAGE_IDS, has_mark
from ovseg_batch.io.records import ManifestRecord
from ovseg_batch.io.remote import Remote, is_remote, scheme_of
from ovseg_batch.io.sources import open_source
from ovseg_batch.types import ImageRow
from ovseg_batch.units import counted

FORMAT = b"ovseg_batch.manifest"
FORMAT_VERSION = 1
EXAMPLES = 3  # how many files a note names
WRITING = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}  # shards are too small to gain

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
REVISION = "ovseg_revision"  # column: in which revision of the list a row came in or changed; none: in the first
OWN = frozenset([*COLUMNS.names, REVISION])
UNHASHED = {"path", REVISION}  # where the files lie, and when, decides nothing


@dataclass(slots=True)
class Summary:
    """What was written, and what a person should know of it."""

    rows: int = 0
    shards: int = 0
    missing: int = 0
    duplicates: int = 0
    skipped: int = 0
    left_out: int = 0
    without_ids: bool = False
    examples: dict[str, list[str]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """One sentence for each kind of oddity."""
        texts = {
            "missing": f"{counted(self.missing, 'file is', 'files are')} not there; their rows will fail",
            "duplicates": f"{counted(self.duplicates, 'image is', 'images are')} listed more than once and taken once",
            "skipped": f"{counted(self.skipped, 'file is', 'files are')} left out, having no suffix of an image",
            "left_out": f"{counted(self.left_out, 'folder is', 'folders are')} left out, being written by ovseg-batch",
        }
        ids = (
            ["not every image has a COCO id of its own, so image ids count the images from 1"]
            if self.without_ids
            else []
        )
        return ids + [
            text + (f" ({', '.join(self.examples[kind])}{', …' if count > EXAMPLES else ''})" if count else "")
            if kind in self.examples
            else text
            for kind, text in texts.items()
            if (count := getattr(self, kind))
        ]

    def count(self, kind: str, example: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        named = self.examples.setdefault(kind, [])
        if len(named) < EXAMPLES:
            named.append(example)


class Manifest:
    """A manifest file opened for reading."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        metadata = file.schema_arrow.metadata or {}
        record = ManifestRecord.model_validate_json((file.metadata.metadata or metadata)[FORMAT])
        self.rows: int = file.metadata.num_rows
        self.columns: list[str] = file.schema_arrow.names
        self.shards: int = file.metadata.num_row_groups
        self.shard_rows, self.fingerprint = record.shard_rows, record.fingerprint
        self.origin = record.origin or record.fingerprint
        self.revision, self.revisions, self.remote = record.revision, record.revisions, record.remote

    @classmethod
    def open(cls, path: Path) -> Manifest:
        """Raises UsageError when the file is not there or is no manifest of ours."""
        try:
            return cls(pq.ParquetFile(path))
        except FileNotFoundError:
            raise UsageError(f"There is no manifest {path}.") from None
        except (KeyError, ValueError, OSError) as error:
            raise UsageError(f"{path} is not a manifest that `ovseg-batch manifest` wrote: {error}") from None

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the Parquet file is a manifest of ours and not some other table."""
        return has_mark(path, FORMAT)

    def shard_of(self, row: int) -> int:
        """The shard in which a row is."""
        return row // self.shard_rows

    @property
    def span(self) -> int:
        """One more than the greatest row number there can be; rows that have been removed leave gaps."""
        return self.shards * self.shard_rows

    @cached_property
    def has_coco_ids(self) -> bool:
        """Whether every row has an id of its own from a COCO file."""
        if COCO_ID not in self.columns or self._file.schema_arrow.field(COCO_ID).type != pa.int64():
            return False
        found = np.fromiter((-1 if n is None else n for n in self.read_column(COCO_ID)), np.int64, self.rows)
        found.sort()
        return not len(found) or bool(found[0] >= 0 and (found[1:] != found[:-1]).all())

    @property
    def id_info(self) -> dict[str, str]:
        """What COCO files say of their ids in `info`, so that they can be an input again."""
        return {IMAGE_IDS: COCO_ID} if self.has_coco_ids else {}

    def image_id(self, row: ImageRow) -> int:
        """The id of an image in COCO files: that of its input where all images have one, otherwise its row plus 1."""
        return int(row.extra[COCO_ID]) if self.has_coco_ids else row.row + 1

    def rows_of(self, shard: int) -> int:
        """Return the number of rows in a shard."""
        return int(self._file.metadata.row_group(shard).num_rows)

    def read_column(self, name: str) -> Iterator[Any]:
        """One column of all rows, a shard at a time."""
        for group in range(self.shards):
            yield from self._file.read_row_group(group, columns=[name]).column(0).to_pylist()

    def read_paths(self) -> Iterator[tuple[int, str]]:
        """Yield the row number and the path or URL of every image, a shard at a time."""
        for group in range(self.shards):
            columns = self._file.read_row_group(group, columns=["row", "path"]).to_pydict()
            yield from zip(columns["row"], map(_path_from_text, columns["path"]), strict=True)

    def read_shard(self, shard: int) -> list[ImageRow]:
        """The rows of one shard, without reading any other."""
        lines = self._file.read_row_group(shard).to_pylist()
        return [
            ImageRow(
                **{name: line[name] for name in COLUMNS.names if name != "path"},
                path=_path_from_text(line["path"]),
                revision=line.get(REVISION) or 0,
                extra={name: value for name, value in line.items() if name not in OWN},
            )
            for line in lines
        ]


def build_manifest(inputs: Sequence[str | Source], out: Path, shard_rows: int, remote: Remote | None = None) -> Summary:
    """List the images of `inputs` into the Parquet file `out`.

    Args:
        inputs: folders, globs, lists, COCO files (`sources.open_source`), or what one of them has been opened to.
        out: replaced atomically; its bytes depend on the inputs alone.
        shard_rows: images in a shard.
        remote: how buckets are listed; None: they are not.

    Raises:
        UsageError: an input that means nothing, no image at all, no listed file that exists, or one key for two images.
    """
    summary = Summary()
    sources = [one if isinstance(one, Source) else open_source(one, remote) for one in inputs]
    prefixes = _prefixes(sources)
    schema = _schema(sources)
    with failpoints.within("manifest"), atomic_path(out) as temporary:
        lines = (
            _line(entry, prefix, summary)
            for source, prefix in zip(sources, prefixes, strict=True)
            for entry in source.entries
        )
        hashes = _write(temporary, lines, schema, shard_rows, summary)
        repeated = _repeated(hashes)
        if repeated:
            drop = _duplicates(temporary, repeated, summary)
            first_draft = temporary.with_suffix(".draft")
            temporary.rename(first_draft)
            try:
                _write(temporary, _kept(first_draft, drop), schema, shard_rows, summary)
            finally:
                first_draft.unlink()
        written = Manifest.open(temporary)
        summary.without_ids = COCO_ID in written.columns and not written.has_coco_ids
        summary.skipped = sum(source.skipped for source in sources)
        for folder in (folder for source in sources for folder in source.left_out):
            summary.count("left_out", folder)
        named = ", ".join(str(source.name) for source in sources)
        if summary.rows == 0:
            notes = "".join(f" {note}." for note in summary.notes())
            raise UsageError(f"There is no image in {named}.{notes}")
        if summary.missing == summary.rows:
            raise UsageError(
                f"None of the {summary.rows} images of {named} exists ({summary.examples['missing'][0]} …). "
                "Relative paths start at the folder of the list."
            )
    return summary


def _prefixes(sources: Sequence[Source]) -> list[str]:
    """What comes before the file names of each source: nothing for one, its own name when there are several."""
    if len(sources) == 1:
        return [""]
    return [f"{source.folder}/" if source.folder else "" for source in sources]


def _schema(sources: Sequence[Source]) -> pa.Schema:
    extras: dict[str, pa.DataType] = {}
    for source in sources:
        for name, kind in source.fields:
            column = _column(name)
            if column not in OWN:
                extras[column] = kind if extras.get(column, kind) == kind else pa.string()
    return pa.schema([*COLUMNS, *(pa.field(name, kind) for name, kind in extras.items())])


def _column(name: str) -> str:
    """The name under which a source's column is kept: its own, unless the manifest has another use for it."""
    return f"source_{name}" if name in OWN - {"key", "width", "height"} else name


def _line(entry: Entry, prefix: str, summary: Summary) -> dict[str, Any]:
    size, mtime = entry.bytes, entry.mtime_ns
    if not is_remote(entry.path):
        try:
            status = os.stat(entry.path)
            size, mtime = status.st_size, status.st_mtime_ns
        except OSError:
            summary.count("missing", f"{entry.where}: {entry.file_name}")
    return {
        "key": entry.key or prefix + entry.file_name,
        "file_name": prefix + entry.file_name,
        "path": _text_from_path(entry.path),
        "bytes": size,
        "mtime_ns": mtime,
        "width": entry.width,
        "height": entry.height,
        **{_column(name): value for name, value in entry.extra.items()},
    }


class ManifestWriter:
    """Writes a manifest shard by shard.

    Attributes:
        hashes: 64 bits of every key.
        rows, shards: written so far.
    """

    def __init__(self, path: Path, schema: pa.Schema, shard_rows: int) -> None:
        self.hashes = array("Q")
        self.rows = self.shards = 0
        self._schema, self._shard_rows = schema, shard_rows
        self._digest = hashlib.blake2b(digest_size=16)
        self._texts = [f.name for f in schema if f.type == pa.string() and f.name not in OWN]
        self._remote = Counter[str]()
        self._file = create(path)
        self._writer = pq.ParquetWriter(self._file, schema, **WRITING)
        self._shard: list[dict[str, Any]] = []

    def add(self, line: dict[str, Any]) -> None:
        """The next row. One that has a number keeps it; the others are numbered from their shard's first."""
        for name in self._texts:
            if line.get(name) is not None:
                line[name] = str(line[name])
        line.setdefault("row", self.shards * self._shard_rows + len(self._shard))
        hashed = {name: value for name, value in sorted(line.items()) if name not in UNHASHED}
        self._digest.update(json.dumps(hashed, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace"))
        self.hashes.append(key_hash(line["key"]))
        if is_remote(line["path"]) and not line["path"].startswith("file://"):
            self._remote[scheme_of(line["path"])] += 1
        self.rows += 1
        self._shard.append(line)
        if len(self._shard) == self._shard_rows:
            self.end_shard()

    def end_shard(self) -> None:
        """Close the shard, full or not; an empty one is a shard too."""
        self._writer.write_table(
            pa.Table.from_pylist(self._shard, self._schema), row_group_size=max(len(self._shard), 1)
        )
        self.shards += 1
        self._shard.clear()

    def close(self, more: Mapping[str, Any] | None = None) -> None:
        """Write the last shard and what the file says of itself, `more` included."""
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
) -> array[int]:
    """Write the lines shard by shard; a 64-bit hash of every key."""
    writer = ManifestWriter(path, schema, shard_rows)
    with contextlib.closing(writer):
        for line in lines:
            writer.add(line)
    summary.rows, summary.shards = writer.rows, writer.shards
    return writer.hashes


def key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")


def _repeated(hashes: array[int]) -> set[int]:
    ordered = np.sort(np.frombuffer(hashes, np.uint64))
    return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def _duplicates(path: Path, repeated: set[int], summary: Summary) -> set[int]:
    """Rows that list an image a second time. Two different images with one key are an error."""
    first: dict[str, Mapping[str, Any]] = {}
    drop: set[int] = set()
    for line in _lines(path, ["row", "key", "file_name", "path"]):
        if key_hash(line["key"]) not in repeated:
            continue
        other = first.setdefault(line["key"], line)
        if other is line:
            continue
        if other["path"] != line["path"] or line["key"] != line["file_name"]:
            raise UsageError(
                f"Rows {other['row']} ({other['path']}) and {line['row']} ({line['path']}) have the same key "
                f"{line['key']!r}. Keys name the results: give each row its own."
            )
        drop.add(line["row"])
        summary.count("duplicates", line["file_name"])
    return drop


def _kept(path: Path, drop: set[int]) -> Iterator[dict[str, Any]]:
    for line in _lines(path):
        if line.pop("row") not in drop:
            yield line


def _lines(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns).to_pylist()


def _text_from_path(path: str) -> str:
    """The path itself, or a file: URI where the name is not UTF-8 and no string column could hold it."""
    try:
        path.encode("utf-8")
        return path
    except UnicodeEncodeError:
        return f"file://{urllib.parse.quote(os.fsencode(path))}"


def _path_from_text(text: str) -> str:
    if text.startswith("file://"):
        return os.fsdecode(urllib.parse.unquote_to_bytes(text.removeprefix("file://")))
    return text
