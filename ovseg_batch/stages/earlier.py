"""Shards that a stage has committed with other words. What they have of a word need not be computed again."""

from __future__ import annotations

import contextlib
import functools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.errors import OvsegError
from ovseg_batch.io import locks
from ovseg_batch.stages.base import WordStage
from ovseg_batch.stages.upstream import CommittedArrays
from ovseg_batch.types import Commit
from ovseg_batch.workdir.committed import read_lines
from ovseg_batch.workdir.store import LOCK, StageStore
from ovseg_batch.workdir.variants import variants


@dataclass(frozen=True, slots=True)
class EarlierShard:
    """A shard that a stage has committed with other words, and otherwise with equal inputs.

    Attributes:
        settings: what `StagePlan.inputs` returned.
    """

    settings: Mapping[str, Any]
    store: StageStore
    commit: Commit

    def lines(self) -> list[dict[str, Any]]:
        """Read the columns of every row. Raises OvsegError, as `open`."""
        with self._unchanged():
            return read_lines(self.store, self.commit.shard)

    @contextlib.contextmanager
    def open(self) -> Iterator[CommittedArrays]:
        """Open the arrays of the rows.

        Raises:
            OvsegError: the files are damaged, or another command has replaced or deleted them.
        """
        with self._unchanged():
            arrays = CommittedArrays(self.store, self.commit.shard)
        with arrays:
            yield arrays

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Read files without a lock: they are those of the commit if it is still there afterwards."""
        try:
            yield
        except (OSError, zipfile.BadZipFile) as error:
            raise OvsegError(str(error)) from None
        if self.store.read_sealed(self.commit.shard) != self.commit:
            raise OvsegError("another command has replaced it")


@contextlib.contextmanager
def earlier_shards(
    stage: WordStage, store: StageStore, shard: int, upstream: Mapping[str, Commit]
) -> Iterator[list[EarlierShard]]:
    """Find the commits of a shard with other words. `gc` deletes none of them while they are in use.

    Args:
        upstream: the present commits of the earlier stages. A commit must have been computed from these, or from
            commits whose rows these keep.
    """
    found = []
    with contextlib.ExitStack() as stack:
        for one in variants(store, stage.words_in):
            folder = one.store.folder
            with contextlib.suppress(OSError):  # it has been deleted, or its disk cannot be written
                stack.enter_context(locks.shared(folder / LOCK, functools.partial(_require, folder)))
                commit = one.store.read_commit(shard, outdated=True)
                if commit is not None and commit.follows(upstream):
                    found.append(EarlierShard(one.settings, one.store, commit))
        yield found


def _require(folder: Path) -> None:
    """Raise FileNotFoundError unless a stage folder is there."""
    (folder / "stage.json").stat()
