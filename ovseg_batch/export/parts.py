"""Lines of text that the shards of an export give, kept apart until they are put together into one file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ovseg_batch.io.atomic import atomic_path, create_text


class Parts:
    """Files `<shard>-<kind>.part` in a folder, a line each entry; no entry holds a newline."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, shard: int, kind: str) -> Path:
        return self.folder / f"{shard:06d}-{kind}.part"

    def write(self, shard: int, kind: str, lines: Iterable[str]) -> None:
        """Replace a part, atomically."""
        with atomic_path(self.path(shard, kind)) as temporary, create_text(temporary) as file:
            for line in lines:
                file.write(line)
                file.write("\n")

    def read(self, shards: Sequence[int], kind: str) -> Iterator[str]:
        """The lines of all shards' parts of a kind, in order; a shard without such a part has none."""
        for shard in shards:
            path = self.path(shard, kind)
            if path.exists():
                with path.open(encoding="utf-8", newline="\n") as file:
                    for line in file:
                        yield line.removesuffix("\n")


class ShardLines:
    """The lines of one shard, by kind and split, until all are known."""

    def __init__(self, kinds: Sequence[str], splits: Sequence[str]) -> None:
        self._lines: dict[str, list[str]] = {of_split(kind, split): [] for kind in kinds for split in splits or ("",)}

    def add(self, kind: str, split: str, line: str) -> None:
        self._lines[of_split(kind, split)].append(line)

    def write(self, parts: Parts, shard: int) -> None:
        for kind, lines in self._lines.items():
            parts.write(shard, kind, lines)


def of_split(kind: str, split: str) -> str:
    """The kind of part that a split has for itself."""
    return f"{kind}-{split}" if split else kind


def split_path(path: Path, split: str) -> Path:
    """`masks.json` → `masks-val.json`; the same path where images are not parted."""
    return path.with_name(f"{path.stem}-{split}{path.suffix}") if split else path
