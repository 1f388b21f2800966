"""Compare the inputs of a run with its manifest, and write the updated manifest.

Rows that still exist keep their number and shard, so that their committed results stay valid. Changed rows get the new
revision. Removed rows leave a gap. New rows form new shards at the end. The comparison holds 41 bytes a row.
"""

from __future__ import annotations

import functools
import hashlib
import json
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovseg_batch.errors import UsageError
from ovseg_batch.io.atomic import publish, temporary_path
from ovseg_batch.io.hashing import key_hash
from ovseg_batch.io.manifest import ADDED, REVISION, SHARED, UNHASHED, Manifest, ManifestWriter
from ovseg_batch.wording import spelled

GROUPS = 8  # row groups of the new list that are cached, for rows that have changed


@dataclass(slots=True)
class Changes:
    """Numbers of added, changed and removed images."""

    added: int = 0
    changed: int = 0
    removed: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def update_manifest(
    ours: Path, fresh: Path, changed: Collection[str] = (), before_change: Callable[[], object] = lambda: None
) -> Changes:
    """Update the manifest `ours` to `fresh`, a new manifest of the same inputs. Without changes, `ours` is not written.

    An image has changed if its bytes, modification time, size or any additional column differ.

    Args:
        changed: keys of images that count as changed in any case.
        before_change: called before `ours` is replaced.

    Raises:
        UsageError: the lists have other columns.
    """
    old, new = Manifest.open(ours), Manifest.open(fresh)
    _check_columns(old, new)
    found = _Fresh(new)
    changes, revisions, revision = Changes(), dict(old.revisions), old.revision + 1
    temporary = temporary_path(ours)
    try:
        with pq.ParquetFile(ours) as file:
            schema = _schema(file.schema_arrow, new.columns)
            writer = ManifestWriter(temporary, schema, old.shard_rows)
            try:
                for group in range(file.num_row_groups):
                    if _keep(old.read_lines(group), found, changed, writer, revision, changes):
                        revisions[group] = revision
                    if writer.shards == group:
                        writer.end_shard()
                for line in found.others():
                    changes.added += 1
                    revisions[writer.shards] = revision
                    writer.add({**line, REVISION: revision})
            finally:
                writer.close({"origin": old.origin, "revision": revision, "revisions": revisions})
        if changes:
            before_change()
            publish(temporary, ours)
    finally:
        temporary.unlink(missing_ok=True)
    return changes


def _check_columns(old: Manifest, new: Manifest) -> None:
    """Raise UsageError where the list that a manifest was made of has other columns than before."""
    was, now = ([name for name in one.columns if name not in ADDED] for one in (old, new))
    if was != now:
        raise UsageError(
            f"The list has other columns than that of the workdir ({', '.join(now)}; there it was "
            f"{', '.join(was)}). Choose another workdir with {spelled('-o', 'workdir=')}."
        )


def _schema(old: pa.Schema, columns: Collection[str]) -> pa.Schema:
    """Return the schema of an updated manifest: the old one, with the columns that updates and new images need."""
    schema = old.remove_metadata()
    for name, kind in ((SHARED, pa.bool_()), (REVISION, pa.int32())):
        if name not in schema.names and name in (*columns, REVISION):
            schema = schema.append(pa.field(name, kind))
    return schema


def _keep(
    lines: list[dict[str, Any]],
    found: _Fresh,
    changed: Collection[str],
    writer: ManifestWriter,
    revision: int,
    changes: Changes,
) -> bool:
    """Write the current rows of a shard. Return whether any row was changed or removed."""
    touched = False
    for line in lines:
        index = found.index_of(line)
        if index is None:
            changes.removed += 1
            touched = True
        elif line["key"] not in changed and found.same(index, line):
            writer.add({**line, "path": found.path(index, line["path"])})
        else:
            changes.changed += 1
            touched = True
            writer.add({**found.line(index), "row": line["row"], REVISION: revision})
    return touched


class _Fresh:
    """The rows of the new list, found by key and compared by content hash."""

    def __init__(self, manifest: Manifest) -> None:
        keys, contents, paths, self._starts = array("Q"), array("Q"), array("Q"), [0]
        for group in range(manifest.shards):
            for line in manifest.read_lines(group):
                keys.append(key_hash(line["key"]))
                contents.append(_content(line))
                paths.append(key_hash(line["path"]))
            self._starts.append(len(keys))
        self._contents, self._paths = np.frombuffer(contents, np.uint64), np.frombuffer(paths, np.uint64)
        self._order = np.argsort(np.frombuffer(keys, np.uint64), kind="stable")
        self._keys = np.frombuffer(keys, np.uint64)[self._order]
        self._taken = np.zeros(len(keys), bool)
        self._group: Callable[[int], list[dict[str, Any]]] = functools.lru_cache(GROUPS)(manifest.read_lines)

    def index_of(self, line: Mapping[str, Any]) -> int | None:
        """Return the index of the row with the key of `line`, and mark it as matched."""
        wanted = np.uint64(key_hash(line["key"]))
        place = int(np.searchsorted(self._keys, wanted))
        if place == len(self._keys) or self._keys[place] != wanted:
            return None
        index = int(self._order[place])
        self._taken[index] = True
        return index

    def same(self, index: int, line: Mapping[str, Any]) -> bool:
        return bool(self._contents[index] == _content(line))

    def path(self, index: int, known: str) -> str:
        """Return the current path of an image."""
        return known if self._paths[index] == key_hash(known) else str(self.line(index)["path"])

    def line(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return {k: v for k, v in self._group(group)[index - self._starts[group]].items() if k != "row"}

    def others(self) -> Iterator[dict[str, Any]]:
        """Return the rows that no new entry has matched."""
        for index in np.flatnonzero(~self._taken).tolist():
            yield self.line(index)


def _content(line: Mapping[str, Any]) -> int:
    """Return a 64-bit hash of a row without its number."""
    content = {name: value for name, value in sorted(line.items()) if name not in UNHASHED and name != "row"}
    content[SHARED] = bool(content.get(SHARED))
    text = json.dumps(content, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
