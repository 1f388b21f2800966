"""What the shards of an export give and have: lines of text for one file, and files of a folder.

Lines are kept apart until they are put together. Every file is in a list before it is there, so that a later export can
remove what is not part of it any more, and nothing else.
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
WHOLE = "whole"  # owner of the files that speak of all shards


class Parts:
    """Files `<shard>-<kind>.part` in a folder, a line each entry; no entry holds a newline."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, shard: int, kind: str) -> Path:
        return self.folder / f"{shard:06d}-{kind}.part"

    def listing(self, owner: int | str) -> Path:
        """The list of the files that a shard has in the export's folder."""
        name = f"{owner:06d}" if isinstance(owner, int) else owner
        return self.folder / f"{name}{LIST}"

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


class ShardFiles:
    """Files that a shard, or the whole export, has in the export's folder.

    Args:
        root: the export's folder.
        parts: where the list is kept.
        owner: the shard's number, or a word.
    """

    def __init__(self, root: Path, parts: Parts, owner: int | str) -> None:
        self._root, self._parts = root, parts
        parts.folder.mkdir(parents=True, exist_ok=True)
        self._list = parts.listing(owner).open("a", encoding="utf-8", newline="\n")
        self._batch = FileBatch(root, parts.folder)

    def path(self, name: str) -> Path:
        """Where a file may be written now, because it is in the list."""
        with naming(self._parts.folder):
            print(json.dumps(name), file=self._list, flush=True)
        return self._root / name

    def add(self, name: str, content: bytes) -> None:
        """Begin to write a file, which is there after `publish`."""
        self.path(name)
        self._batch.add(name, content)

    def place(self, row: ImageRow, name: str, suffix: str, reader: Reader, how: Literal["link", "copy", "none"]) -> str:
        """Put an image file there as its reader wants it; the suffix under which it is.

        Raises:
            UsageError: the image is behind a URL.
            OvsegError: it is not there any more, or no image any more.
        """
        if how == "none":
            return suffix
        from ovseg_batch.export.image_files import local_path, place_image  # imports Pillow

        source = local_path(row)
        suffix, convert = reader.choice(source, suffix)
        place_image(source, self.path(name + suffix), how, convert, self._parts.folder)
        return suffix

    def publish(self) -> None:
        """Give the files that were added their names, all at once."""
        os.fsync(self._list.fileno())
        self._batch.publish()

    def __enter__(self) -> ShardFiles:
        self._batch.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._batch.__exit__(*raised)
        with naming(self._parts.folder):  # what could not be written before is tried again
            self._list.close()


def remove_listed(root: Path, lists: Iterable[Path]) -> None:
    """Delete the files that lists name below a folder, the folders that this leaves empty, and the lists."""
    home = root.resolve()

    @functools.lru_cache(maxsize=1024)
    def is_inside(folder: Path) -> bool:
        """Whether no link leads out of the export: a list from a stranger can name anything."""
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
    """Delete a folder below `root` and those above it, as far as they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        folder = folder.parent


def _listed(line: str) -> str:
    """The name in a line of a list; nothing where a power cut has torn it."""
    try:
        return str(json.loads(line))
    except ValueError:
        return ""


def of_split(kind: str, split: str) -> str:
    """The kind of part that a split has for itself."""
    return f"{kind}-{split}" if split else kind


def split_path(path: Path, split: str) -> Path:
    """`masks.json` → `masks-val.json`; the same path where images are not parted."""
    return path.with_name(f"{path.stem}-{split}{path.suffix}") if split else path
