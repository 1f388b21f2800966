"""Words that earlier runs have searched for. A run computes only the others.

SAM 3 finds the same of a word alone and among other words. So a folder of the stage that differs only in its words has
what a new run needs of the words that both have, for every image with the same content. Words without a mask count too:
their scores are stored.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ovseg_batch.errors import OvsegError
from ovseg_batch.stages.earlier import EarlierShard
from ovseg_batch.stages.sam3.found import FoundWord, StoredWord, unpacked
from ovseg_batch.stages.upstream import CommittedArrays
from ovseg_batch.types import ImageRow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _KnownRow:
    """The words of an image that an earlier run has.

    Attributes:
        content: hash of the image's file.
        words: query of this run → the word.
        maps: number of maps that the row stores.
        arrays: of the shard.
    """

    content: str | None
    words: Mapping[int, StoredWord]
    maps: int
    arrays: CommittedArrays

    def read(self, row: int) -> Iterator[tuple[int, FoundWord]]:
        """Yield query and word. Raises OvsegError: the stored maps do not fit the columns."""
        placed = any(one.place is not None for one in self.words.values())
        maps = self.arrays.pixels(row, "maps", (self.maps, None, None)) if placed else None
        for query, one in self.words.items():
            masks = [replace(mask, query=query) for mask in one.word.masks]
            fused = None if maps is None or one.place is None else maps[one.place]
            yield query, replace(one.word, query=query, masks=masks, fused=fused)


class KnownWords:
    """The words that earlier runs have found in the images of a shard."""

    def __init__(self) -> None:
        self._rows: dict[int, list[_KnownRow]] = {}

    def add(self, shard: EarlierShard, arrays: CommittedArrays, queries: Mapping[int, int]) -> None:
        """Add words of a shard of an earlier run.

        Args:
            queries: query of that run → query of this run.

        Raises:
            OvsegError: its table is damaged or has been replaced.
        """
        for line in shard.lines():
            if line["status"] == "ok":
                words, maps = unpacked(line)
                wanted = {queries[query]: one for query, one in words.items() if query in queries}
                self._rows.setdefault(line["row"], []).append(_KnownRow(line["content"], wanted, maps, arrays))

    def of(self, row: ImageRow) -> dict[int, FoundWord]:
        """Return the words of an image that are known for its present content, by query."""
        found: dict[int, FoundWord] = {}
        for known in self._rows.get(row.row, ()):
            if row.content is not None and known.content == row.content:
                with contextlib.suppress(OvsegError):  # of maps that were committed with wrong shapes
                    found.update(known.read(row.row))
        return found


@contextlib.contextmanager
def known_words(queries: Sequence[str], earlier: Sequence[EarlierShard]) -> Iterator[KnownWords]:
    """Read the words that earlier runs have found in a shard.

    Each word comes from one run, and a run that adds no word is not read. So what is held in memory does not grow with
    the number of runs. Maps are read image by image.

    Args:
        queries: the words of this run.
    """
    known, missing, left = KnownWords(), {*queries}, list(earlier)
    with contextlib.ExitStack() as stack:
        while left and missing:
            best = max(left, key=lambda one: len(missing.intersection(one.settings["queries"])))
            left.remove(best)
            own = best.settings["queries"]
            words = missing.intersection(own)
            if not words:
                break
            try:
                arrays = stack.enter_context(best.open())
                known.add(best, arrays, {own.index(queries[k]): k for k in range(len(queries)) if queries[k] in words})
            except OvsegError:
                log.warning(
                    "%s: shard %d differs from its commit, so its words are computed again. "
                    "`ovseg-batch gc --yes` deletes the folders of earlier runs.",
                    *(best.store.folder.name, best.commit.shard),
                )
                continue
            missing -= words
        yield known
