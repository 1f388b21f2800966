"""List the files under a local folder that match a pattern, as a stream. Unreadable folders are counted and skipped."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovseg_batch.io.entries import SHOWN, Counts
from ovseg_batch.io.marks import is_ours

EVERYTHING = ("**",)

#: thumbnails, recycle bins and lock files of operating systems, network drives and office programs, in lower case
SYSTEM_NAMES = (
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "$recycle.bin"),
    *(".trash*", ".thumbnails", ".@__thumb", "._*", "~$*", "thumbs.db", "desktop.ini"),
    *("system volume information", "__macosx"),
)


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")


_SYSTEM = _any_of(SYSTEM_NAMES)


class Filter:
    """Decides which files and folders a listing skips.

    Args:
        exclude: globs. One without `/` fits a name at any depth. One with `/` fits a path that starts at INPUT, or at
            the root of the file system if it begins with `/`. `*` also fits `/`.
    """

    def __init__(self, exclude: Sequence[str] = ()) -> None:
        patterns = [one.removeprefix("./").rstrip("/") or "/" for one in exclude]
        patterns = [one.removeprefix("**/") if one.count("/") == 1 else one for one in patterns]
        self._names = _any_of(one for one in patterns if "/" not in one)
        self._whole = _any_of(one for one in patterns if one.startswith("/"))
        self._paths = _any_of(
            one if one.startswith("**/") else f"/{one}" for one in patterns if "/" in one and not one.startswith("/")
        )

    def excludes(self, relative: str, path: str) -> bool:
        """Return whether a pattern matches this file or folder itself."""
        name = relative.rpartition("/")[2]
        found = self._names.match(name) or self._paths.match(f"/{relative}") or self._whole.match(path)
        return found is not None

    def excludes_entry(self, relative: str, path: str) -> bool:
        """Return whether a pattern matches a listed file, or a folder above it."""
        while relative:
            if self.excludes(relative, path):
                return True
            relative, path = relative.rpartition("/")[0], path.rpartition("/")[0]
        return False

    def leaves_out(self, relative: str, path: str, counts: Counts) -> bool:
        """Return whether a file or folder is skipped, and count it if so."""
        if _SYSTEM.match(relative.rpartition("/")[2].lower()):
            counts.count("system", path)
        elif self.excludes(relative, path):
            counts.count("excluded", path)
        else:
            return False
        return True


@dataclass(slots=True)
class _Level:
    """A folder that is being listed: its names in order, and the parts of the pattern that may match them."""

    path: str
    relative: str
    identity: tuple[int, int]
    names: Iterator[str]
    folders: set[str]
    fits: dict[int, Callable[[str], bool]]


def find_files(
    root: Path, pattern: Sequence[str], keep: Filter, counts: Counts, check: Callable[[Path], bool] = is_ours
) -> Iterator[tuple[str, str]]:
    """Yield the path of every file under `root` that fits a pattern, and its path below `root`.

    The order is depth first, each folder in the order of its names. Hidden files and folders, those that `keep` leaves
    out, and folders that this program wrote are not listed.

    Args:
        root: absolute.
        pattern: one glob for each folder and the last one for the file; `**` fits any number of folders. A name that
            equals a part of the pattern is preferred to names that the part fits.
        check: whether this program wrote a folder.
    """
    stack: list[_Level] = []
    above: set[tuple[int, int]] = set()

    def enter(path: str, relative: str, states: set[int]) -> None:
        try:
            level = _open(path, relative, states, pattern)
        except OSError as error:
            place = path if len(path) <= SHOWN // 2 else f"…{path[-SHOWN // 2 :]}"
            counts.count("locked", f"{place}: {error.strerror or error}")
            return
        if level.identity not in above:  # otherwise a link leads back to a folder above
            above.add(level.identity)
            stack.append(level)

    enter(str(root), "", _reached({0}, pattern))
    while stack:
        level = stack[-1]
        name = next(level.names, None)
        if name is None:
            above.remove(level.identity)
            stack.pop()
            continue
        states = {i if pattern[i] == "**" else i + 1 for i, fits in level.fits.items() if fits(name)}
        path, relative = f"{level.path.rstrip('/')}/{name}", level.relative + name
        if not (states := _reached(states, pattern)):
            if name.startswith(".") and _SYSTEM.match(name.lower()):
                counts.count("system", path)
            continue
        if name not in level.folders:
            if len(pattern) in states and not keep.leaves_out(relative, path, counts):
                yield path, relative
        elif states != {len(pattern)} and not keep.leaves_out(relative, path, counts):
            if check(Path(path)):
                counts.count("left_out", path)
            else:
                enter(path, f"{relative}/", states)


def _open(path: str, relative: str, states: set[int], pattern: Sequence[str]) -> _Level:
    """Read the names in a folder. Raises OSError."""
    status = os.stat(path)
    names, folders = [], set()  # names only: a folder may hold millions
    with os.scandir(path) as listing:
        for entry in listing:
            names.append(entry.name)
            with contextlib.suppress(OSError):  # a link to itself is no folder
                if entry.is_dir():
                    folders.add(entry.name)
    if not os.access(path, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    literal = {pattern[i] for i in states if i < len(pattern)}.intersection(names)
    fits = {i: _fitting(pattern[i], pattern[i] in literal) for i in states if i < len(pattern)}
    names.sort(key=os.fsencode)
    return _Level(path, relative, (status.st_dev, status.st_ino), iter(names), folders, fits)


def _fitting(part: str, literal: bool) -> Callable[[str], bool]:
    """Return a predicate: whether a name matches one part of a pattern. As in a shell, `*` matches no hidden name."""
    if literal or not glob.has_magic(part):
        return part.__eq__
    if part == "**":
        return lambda name: not name.startswith(".")
    fits = re.compile(fnmatch.translate(part)).match
    return lambda name: fits(name) is not None and (part.startswith(".") or not name.startswith("."))


def _reached(states: set[int], pattern: Sequence[str]) -> set[int]:
    """Return the states and their followers, because `**` also matches zero folders."""
    for state in range(len(pattern)):
        if state in states and pattern[state] == "**":
            states.add(state + 1)
    return states
