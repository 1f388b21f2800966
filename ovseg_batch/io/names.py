"""Prefixes of file names that distinguish several inputs."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ovseg_batch.io.entries import Entry, Source, plain


class Names:
    """The prefix of the file names of each input.

    A single input has no prefix. With several inputs, the prefix of a folder is its name. Where two images would have
    one name, their inputs get as many parts of their paths as are needed to differ.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._places = [tuple(plain(part) for part in one.place if part.strip("/")) for one in sources]
        self._lengths = [int(len(sources) > 1 and bool(one.folder)) for one in sources]
        self.prefixes = [
            f"{plain(one.folder)}/" if length else "" for one, length in zip(sources, self._lengths, strict=True)
        ]
        self._written = [*self.prefixes]  # prefixes of the rows that `renamed` reads
        self._starts: list[int] = []

    def numbered(self, sources: Sequence[Source]) -> Iterator[tuple[Entry, str]]:
        """Yield every entry with its prefix, and store the first row of each input."""
        row = 0
        for source, prefix in zip(sources, self.prefixes, strict=True):
            self._starts.append(row)
            for entry in source.entries:
                yield entry, prefix
                row += 1

    def differ(self, row: int, other: int) -> bool:
        """Return whether two rows come from inputs with different paths."""
        return self._places[self._owner(row)] != self._places[self._owner(other)]

    def tell_apart(self, clashes: Sequence[tuple[int, int]]) -> bool:
        """Lengthen the prefixes of inputs whose rows have equal names. Return False where that is impossible."""
        before = [*self.prefixes]
        for group in _groups((self._owner(a), self._owner(b)) for a, b in clashes):
            longest = max(len(self._places[index]) for index in group)
            for length in range(max(self._lengths[index] for index in group), longest + 1):
                found = {index: self._tail(index, length) for index in group}
                changed = any(found[index] != self.prefixes[index] for index in group)
                if changed and (length == longest or len(set(found.values())) == len({self._places[i] for i in group})):
                    for index, prefix in found.items():
                        self.prefixes[index], self._lengths[index] = prefix, length
                    break
        return self.prefixes != before

    def renamed(self, lines: Iterator[dict[str, Any]], drop: Collection[int]) -> Iterator[dict[str, Any]]:
        """Yield the written rows with their new names, without the rows in `drop`."""
        starts, kept, last = [0] * len(self._starts), 0, -1
        for number, line in enumerate(lines):
            owner = self._owner(number)
            starts[last + 1 : owner + 1] = [kept] * (owner - last)
            last = owner
            if number not in drop:
                old, new = self._written[owner], self.prefixes[owner]
                renamed = new + line["file_name"].removeprefix(old)
                key = renamed if line["key"] == line["file_name"] else line["key"]
                yield {**{k: v for k, v in line.items() if k != "row"}, "file_name": renamed, "key": key}
                kept += 1
        starts[last + 1 :] = [kept] * (len(starts) - last - 1)
        self._starts, self._written = starts, [*self.prefixes]

    def _owner(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row) - 1

    def _tail(self, index: int, length: int) -> str:
        place = self._places[index]
        return "".join(f"{part}/" for part in place[max(len(place) - length, 0) :])


def _groups(pairs: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of a graph whose edges are pairs of inputs, each in order."""
    parents: dict[int, int] = {}

    def root(index: int) -> int:
        while parents.setdefault(index, index) != index:
            parents[index] = index = parents[parents[index]]
        return index

    for one, other in pairs:
        parents[root(other)] = root(one)
    groups: dict[int, list[int]] = {}
    for index in sorted(parents):
        groups.setdefault(root(index), []).append(index)
    return [*groups.values()]
