"""The rows of a finished run, shard by shard, as exports and evaluation read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ovseg_batch.io.manifest import Manifest
from ovseg_batch.io.tables import read_results
from ovseg_batch.stages.base import TABLE
from ovseg_batch.store import StageStore

T = TypeVar("T")

EDIT = "edit"


def mask_stage(stages: Sequence[T], name: Callable[[T], str]) -> T:
    """The one of a run's stages that drew the masks: the last, but for edits."""
    return next(stage for stage in reversed(stages) if name(stage) != EDIT)


def finished_rows(manifest: Manifest, store: StageStore) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file name, line of the stage's table) of every image that the stage has finished, in manifest order."""
    for shard in range(manifest.shards):
        yield from finished_rows_of(manifest, store, shard)


def finished_rows_of(manifest: Manifest, store: StageStore, shard: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same of one shard; it is read when the first is asked for."""
    names = {row.row: row.file_name for row in manifest.read_shard(shard)}
    for line in read_results(store.data_path(shard, TABLE)):
        if line["status"] == "ok":
            yield names[line["row"]], line


def failed_rows(manifest: Manifest, stores: Sequence[StageStore]) -> Iterator[tuple[int, str, str, str, str]]:
    """(row, key, stage, code, message) of every failed image: the first failure, not those it causes downstream."""
    for shard in range(manifest.shards):
        for store in stores:
            commit = store.read_commit(shard)
            if commit is None or not commit.failed:
                continue
            for line in read_results(store.data_path(shard, TABLE), ["row", "key", "status", "code", "message"]):
                if line["status"] == "failed" and line["code"] != "upstream":
                    yield line["row"], line["key"], store.stage, line["code"], line["message"]
