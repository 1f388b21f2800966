"""Intermediate files of an export: lines of text for a single file, and lists of the files in a folder.

Each shard has its parts until they are joined. Every file is listed before it is written, so that a later export can
remove exactly the files that it no longer needs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovseg_batch.io.atomic import FileBatch, atomic_path, create_text, naming
from ovseg_batch.types import ImageRow

if TYPE_CHECKING:
    from ovseg_batch.export.image_files import Reader

LIST = ".files"  # suffix of lists of files
WHOLE = "whole"  # owner of the files that depend on all shards


class Parts:
    """Files `<shard>-<kind>.part` in a folder, with one entry per line. Entries contain no newline."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, shard: int, kind: str) -> Path:
        return self.folder / f"{shard:06d}-{kind}.part"

    def listing(self, owner: int | str) -> Path:
        """Return the list of a shard's files in the folder of the export."""
        name = f"{owner:06d}" if isinstance(owner, int) else owner
        return self.folder / f"{name}{LIST}"

    def write(self, shard: int, kind: str, lines: Iterable[str]) -> None:
        """Replace a part, atomically."""
        with atomic_path(self.path(shard, kind)) as temporary, create_text(temporary) as file:
            for line in lines:
                file.write(line)
                file.write("\n")

    def read(self, shards: Sequence[int], kind: str) -> Iterator[str]:
        """Yield the lines of a kind of part of all shards, in order. A missing part has no lines."""
        for shard in shards:
            path = self.path(shard, kind)
            if path.exists():
                with path.open(encoding="utf-8", newline="\n") as file:
                    for line in file:
                        yield line.removesuffix("\n")


class ShardLines:
    """Collects the lines of one shard by kind and split."""

    def __init__(self, kinds: Sequence[str], splits: Sequence[str]) -> None:
        self._lines: dict[str, list[str]] = {of_split(kind, split): [] for kind in kinds for split in splits or ("",)}

    def add(self, kind: str, split: str, line: str) -> None:
        self._lines[of_split(kind, split)].append(line)

    def write(self, parts: Parts, shard: int) -> None:
        for kind, lines in self._lines.items():
            parts.write(shard, kind, lines)


class ShardFiles:
    """The files of a shard, or of the whole export, in the folder of the export.

    Args:
        root: folder of the export.
        parts: folder of the list.
        owner: number of the shard, or `WHOLE`.
    """

    def __init__(self, root: Path, parts: Parts, owner: int | str) -> None:
        self._root, self._parts = root, parts
        parts.folder.mkdir(parents=True, exist_ok=True)
        self._list = parts.listing(owner).open("a", encoding="utf-8", newline="\n")
        self._batch = FileBatch(root, parts.folder)

    def path(self, name: str) -> Path:
        """Add a file to the list, and return its path for writing."""
        with naming(self._parts.folder):
            print(json.dumps(name), file=self._list, flush=True)
        return self._root / name

    def add(self, name: str, content: bytes) -> None:
        """Start to write a file, which appears with `publish`."""
        self.path(name)
        self._batch.add(name, content)

    def place(self, row: ImageRow, name: str, suffix: str, reader: Reader, how: Literal["link", "copy", "none"]) -> str:
        """Place an image file in the export as the reader requires. Return the suffix of its name.

        Raises:
            UsageError: the image is behind a URL.
            OvsegError: the file is missing, or is not an image any more.
        """
        if how == "none":
            return suffix
        from ovseg_batch.export.image_files import local_path, place_image  # imported here: it imports Pillow

        source = local_path(row)
        suffix, convert = reader.choice(source, suffix)
        place_image(source, self.path(name + suffix), how, convert, self._parts.folder)
        return suffix

    def publish(self) -> None:
        """Rename the added files to their final names, all at once."""
        os.fsync(self._list.fileno())
        self._batch.publish()

    def __enter__(self) -> ShardFiles:
        self._batch.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._batch.__exit__(*raised)
        with naming(self._parts.folder):  # writes that failed before are tried again
            self._list.close()


def remove_listed(root: Path, lists: Iterable[Path]) -> None:
    """Delete the listed files below a folder, folders that become empty, and the lists."""
    home = root.resolve()

    @functools.lru_cache(maxsize=1024)
    def is_inside(folder: Path) -> bool:
        """Return whether no link leads out of the export. Lists are not trusted."""
        return folder.resolve().is_relative_to(home)

    for listing in lists:
        left = root
        with listing.open(encoding="utf-8") as file:
            for line in file:
                path = root / _listed(line)
                if path == root or not is_inside(path.parent) or path.is_dir():
                    continue
                if path.parent != left:
                    _remove_empty(left, root)
                    left = path.parent
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()
        _remove_empty(left, root)
        listing.unlink()


def _remove_empty(folder: Path, root: Path) -> None:
    """Delete a folder below `root`, and its parents, while they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        folder = folder.parent


def _listed(line: str) -> str:
    """Return the name in a line of a list, or an empty string for an incomplete line."""
    try:
        return str(json.loads(line))
    except ValueError:
        return ""


def of_split(kind: str, split: str) -> str:
    """Return the kind of a part for one split."""
    return f"{kind}-{split}" if split else kind


def split_path(path: Path, split: str) -> Path:
    """Return the path for a split, such as `masks-val.json` for `masks.json`. Without splits, return the same path."""
    return path.with_name(f"{path.stem}-{split}{path.suffix}") if split else path
