"""The rows of a run, shard by shard, as exports, reports and evaluation read them; no model is imported for it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from ovseg_batch.errors import OF_THE_FILE, OvsegError
from ovseg_batch.io import rle
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.io.tables import TABLE
from ovseg_batch.types import ImageRow
from ovseg_batch.workdir.committed import read_lines
from ovseg_batch.workdir.store import StageStore, Workdir

T = TypeVar("T")

EDIT = "edit"


def mask_stage(stages: Sequence[T], name: Callable[[T], str]) -> T:
    """The one of a run's stages that drew the masks: the last, but for edits."""
    return next(stage for stage in reversed(stages) if name(stage) != EDIT)


@dataclass(frozen=True)
class Results:
    """What the latest run of a workdir has committed so far: finished or not.

    Attributes:
        labels: the classes in order, without the background.
        has_background: whether what no mask covers was said to be background.
        stores: the stages' folders, in order.
    """

    workdir: Workdir
    labels: tuple[str, ...]
    has_background: bool
    stores: tuple[StageStore, ...]

    @classmethod
    def open(cls, workdir: Workdir) -> Results:
        """Raises UsageError where there is no run."""
        plan = workdir.read_plan()
        return cls(workdir, tuple(plan["labels"]), bool(plan.get("background")), tuple(workdir.stores()))

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.open(self.workdir.manifest)

    @property
    def masks(self) -> StageStore:
        """The stage that drew the masks."""
        return mask_stage(self.stores, lambda store: store.stage)

    @property
    def edits(self) -> StageStore | None:
        return self.stores[-1] if self.stores[-1].stage == EDIT else None

    def state_of(self, shard: int) -> str:
        """A digest of a shard's images, and of what is committed of their masks and edits: others, another digest."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.manifest.read_shard(shard):
            digest.update(repr((row.row, row.key, row.path, row.bytes, row.mtime_ns)).encode())
        for store in (self.masks, self.edits):
            commit = None if store is None else store.read_commit(shard)
            digest.update(b"-" if commit is None else commit.digest.encode())
        return digest.hexdigest()

    def shard(self, shard: int) -> Iterator[tuple[ImageRow, dict[str, Any]]]:
        """(row of the manifest, line of the mask stage's table) of every image of a committed shard that has masks."""
        yield from finished_lines(self.manifest, self.masks, shard, self.labels)


def finished_lines(
    manifest: Manifest, store: StageStore, shard: int, labels: Collection[str] | None = None
) -> Iterator[tuple[ImageRow, dict[str, Any]]]:
    """(row, line of the stage's table) of every image of a shard that the stage has finished, in manifest order.

    Args:
        labels: those that masks may have; None: any.

    Raises:
        OvsegError: the table is damaged or is none that the stage wrote.
    """
    rows = {row.row: row for row in manifest.read_shard(shard)}
    for line in read_lines(store, shard):
        try:
            if line["status"] != "ok" or line["row"] not in rows:
                continue
            _check_masks(line, labels)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise OvsegError(
                f"{store.data_path(shard, TABLE)} is none that this run has written: {reason}. "
                f"Delete the folder {store.folder}, and give the command of the run again."
            ) from None
        yield dataclasses.replace(rows[line["row"]], content=line.get("content")), line


def _check_masks(line: Mapping[str, Any], labels: Collection[str] | None) -> None:
    """Raise ValueError, KeyError or TypeError where the masks of an image cannot be its."""
    height, width = line["height"], line["width"]
    if min(height, width) < 1:
        raise ValueError(f"row {line['row']} has {width} × {height} pixels")
    for one in line.get("annotations") or ():
        if labels is not None and one["category"] not in labels:
            raise ValueError(f"row {line['row']} has a mask of {one['category']!r}, which is no label")
        if not 0 <= one["confidence"] <= 1:
            raise ValueError(f"row {line['row']} has a confidence of {one['confidence']}")
        if rle.area(one["rle"], height, width) != one["area"]:
            raise ValueError(f"row {line['row']} has a mask that is not of its size")


def finished_images(
    manifest: Manifest, store: StageStore, labels: Collection[str] | None = None
) -> Iterator[tuple[ImageRow, dict[str, Any]]]:
    """(row, line of the stage's table) of every image that the stage has finished, in manifest order.

    Args and Raises: as `finished_lines`.
    """
    for shard in range(manifest.shards):
        yield from finished_lines(manifest, store, shard, labels)


def finished_rows(manifest: Manifest, store: StageStore) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file name, line of the stage's table) of the same images."""
    for row, line in finished_images(manifest, store):
        yield row.file_name, line


def finished_rows_of(manifest: Manifest, store: StageStore, shard: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file name, line of the stage's table) of a shard's finished images; it is read when the first is asked for."""
    for row, line in finished_lines(manifest, store, shard):
        yield row.file_name, line


def committed_content(stores: Iterable[StageStore]) -> str:
    """Return a hash of all committed results, by which outputs are known to be made of these and of no earlier ones."""
    digest = hashlib.blake2b(digest_size=16)
    for store in stores:
        for commit in store.commits():
            digest.update(f"{store.stage} {commit.shard} {commit.digest}\n".encode())
    return digest.hexdigest()


def failed_rows(
    manifest: Manifest, stores: Sequence[StageStore], shards: Iterable[int] | None = None
) -> Iterator[tuple[int, str, str, str, str]]:
    """(row, key, stage, code, message) of every failed image: its first failure, not those that this one causes.

    Args:
        shards: those to read; None: all.
    """
    for shard in range(manifest.shards) if shards is None else shards:
        listed: set[int] = set()
        for store in stores:
            commit = store.read_commit(shard)
            if commit is None or not commit.failed:
                continue
            for line in read_lines(store, shard, ["row", "key", "status", "code", "message"]):
                if line["status"] == "failed" and line["row"] not in listed:
                    listed.add(line["row"])
                    yield line["row"], line["key"], store.stage, line["code"], line["message"]


def changed_keys(workdir: Workdir) -> frozenset[str]:
    """Return the keys of images whose file an earlier stage has read, and a later one could not or found changed."""
    stores = tuple(workdir.stores())
    rows = failed_rows(Manifest.open(workdir.manifest), stores)
    return frozenset(key for _, key, stage, code, _ in rows if stage != stores[0].stage and code in OF_THE_FILE)
