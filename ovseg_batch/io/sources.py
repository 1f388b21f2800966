"""Where the manifest's rows come from: folders, globs, URLs and lists, each read as a stream in a fixed order."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io import remote as urls
from ovseg_batch.io.entries import Entry, Source, plain
from ovseg_batch.io.lists import READERS
from ovseg_batch.io.marks import is_ours, is_workdir
from ovseg_batch.io.remote import Remote, is_remote
from ovseg_batch.wording import setting, spelled

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .ppm .pgm .pbm .pnm .avif .jp2 .heic .heif".split()
)


def check_source(text: str) -> None:
    """Check that a local INPUT exists, without listing it. A URL is not checked.

    Raises:
        UsageError: there is no such file or folder, or no file fits the pattern.
    """
    path = Path(text)
    if is_remote(text) or path.exists():
        return
    if glob.has_magic(text):
        if next(glob.iglob(text, recursive=True), None) is None:
            raise UsageError(f"No file fits the pattern {text}.")
        return
    near = nearest(path.name, (e.name for e in path.parent.iterdir())) if path.parent.is_dir() else ""
    label = spelled(' If it is a label: several labels need quotes, as in --labels "sky; tree".', "")
    quotes = "" if "/" in text or path.suffix else label
    raise UsageError(f"There is no file or folder {text}.{near}{quotes}")


def fixed_part(text: str) -> Path:
    """Return the file or folder that INPUT names; of a pattern, the folder above its first part with a wildcard."""
    path = Path(text).absolute()
    return path if path.exists() or not glob.has_magic(text) else Path(*_before_magic(path.parts))


def open_source(text: str, remote: Remote | None = None) -> Source:
    """Open what INPUT names.

    Args:
        remote: how buckets are listed. None: a URL of a folder is an error.

    Raises:
        UsageError: nothing there, or a kind of input that is not understood.
    """
    if is_remote(text):
        return _url(text, remote)
    check_source(text)
    path, fixed = Path(text), fixed_part(text)
    if is_workdir(fixed):
        raise UsageError(
            f"{text} is the workdir of a run. Give the folder of the images; edited images are in {fixed / 'edited'}."
        )
    if path.is_dir():
        metadata = [m for suffix in (".csv", ".jsonl", ".parquet") if (m := path / f"metadata{suffix}").is_file()]
        return open_source(str(metadata[0])) if metadata else _folder(path)
    if not path.exists():
        return _glob(text, fixed)
    if reader := READERS.get(path.suffix.lower()):
        return reader(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Source(text, [], iter([Entry(str(path.absolute()), plain(path.name), text)]))
    raise UsageError(
        f"{text} is no folder, image or list. INPUT is a folder, a glob, a {' '.join([*READERS][:-1])} list, "
        "or a COCO .json."
    )


def _folder(root: Path) -> Source:
    source = Source(str(root), [], iter(()), folder=root.absolute().name)
    source.entries = _walk(root.absolute(), source)
    return source


def _walk(root: Path, source: Source) -> Iterator[Entry]:
    """Yield the images under `root`, depth first, each folder in the order of its names.

    Hidden files and folders, and folders that this program wrote, are left out.
    """

    def visit(folder: str, relative: str, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:  # a link back to a folder we are in
            return
        names, folders = [], set()  # names alone: millions of them in one folder must fit
        with os.scandir(folder) as listing:
            for entry in listing:
                if not entry.name.startswith("."):
                    names.append(entry.name)
                    with contextlib.suppress(OSError):  # a link to itself is no folder
                        if entry.is_dir():
                            folders.add(entry.name)
        for name in sorted(names, key=os.fsencode):
            if name in folders and is_ours(Path(folder, name)):
                source.left_out.append(f"{folder}/{name}")
            elif name in folders:
                yield from visit(f"{folder}/{name}", f"{relative}{name}/", above | {identity})
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Entry(f"{folder}/{name}", plain(relative + name), str(root))
            else:
                source.skipped += 1

    yield from visit(str(root), "", frozenset())


def _url(url: str, remote: Remote | None) -> Source:
    """One image, or a folder of a bucket."""
    scheme = urls.scheme_of(url)
    name = urls.name_of(url)
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        return Source(urls.shown(url), [], iter([Entry(url, plain(name), urls.shown(url))]))
    if scheme in ("http", "https"):
        raise UsageError(
            f"{urls.shown(url)} is no image by its name, and a web server cannot be listed. "
            "Write the images' URLs into a list (.txt, .csv, .jsonl, .parquet)."
        )
    if remote is None:
        allowed = spelled("--allow-remote", setting("run.allow_remote", True))
        raise UsageError(f"{url} is on a network. Give {allowed} to list it and to fetch its images.")
    source = Source(url, [], iter(()), folder=name.rpartition("/")[2])
    source.entries = _bucket(url, remote, source)
    return source


def _bucket(root: str, remote: Remote, source: Source) -> Iterator[Entry]:
    """Images under a folder of a bucket, in the order of `_walk`."""

    def visit(url: str, relative: str) -> Iterator[Entry]:
        for found in urls.listing(url, remote):
            name = found["name"]
            if name.startswith("."):
                continue
            if found["folder"]:
                yield from visit(found["url"], f"{relative}{name}/")
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                size, mtime = found["bytes"], found["mtime_ns"]
                yield Entry(found["url"], plain(relative + name), root, bytes=size, mtime_ns=mtime)
            else:
                source.skipped += 1

    yield from visit(root, "")


def _glob(pattern: str, fixed: Path) -> Source:
    """Open the images that fit a pattern. `fixed` is the folder above its first part with a wildcard."""

    @functools.cache
    def ours(folder: Path) -> bool:
        """Return whether this program wrote the folder, or one between it and `fixed`."""
        if folder == fixed or fixed not in folder.parents:
            return False
        if is_ours(folder):
            source.left_out.append(str(folder))
            return True
        return ours(folder.parent)

    def entries() -> Iterator[Entry]:
        for found in sorted(glob.iglob(pattern, recursive=True), key=os.fsencode):
            path = Path(found).absolute()
            if not path.is_file() or ours(path.parent):
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield Entry(str(path), plain(path.relative_to(fixed).as_posix()), pattern)
            else:
                source.skipped += 1

    source = Source(pattern, [], iter(()))
    source.entries = entries()
    return source


def _before_magic(parts: tuple[str, ...]) -> Iterator[str]:
    for part in parts[:-1]:
        if glob.has_magic(part):
            return
        yield part
