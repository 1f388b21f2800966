"""Open the INPUTs of a manifest: folders, globs, URLs and lists. Each is a stream in a fixed order."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ovseg_batch.errors import UsageError, nearest
from ovseg_batch.io import remote as urls
from ovseg_batch.io.entries import SHOWN, Counts, Entry, Source, plain
from ovseg_batch.io.folders import EVERYTHING, Filter, find_files
from ovseg_batch.io.lists import READERS
from ovseg_batch.io.marks import is_workdir
from ovseg_batch.io.remote import Remote, is_remote
from ovseg_batch.wording import setting, spelled

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .ppm .pgm .pbm .pnm .avif .jp2 .heic .heif".split()
)


def check_source(text: str) -> None:
    """Check that a local INPUT exists, without listing it. A URL is not checked.

    Raises:
        UsageError: the file or folder does not exist, no file matches the pattern, or it cannot be read.
    """
    path = Path(text)
    if is_remote(text) or os.path.exists(text):
        return
    if glob.has_magic(text):
        counts = Counts()
        if next(_fitting(fixed_part(text), path, Filter(), counts), None) is None:
            raise UsageError(f"No file matches the pattern {text}.{counts.sentences()}")
        return
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # no permission, a name that is too long, or a NUL character
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{plain(text)[:SHOWN]} cannot be read: {reason}.") from None
    near = ""
    with contextlib.suppress(OSError):
        near = nearest(path.name, os.listdir(path.parent))
    label = spelled(' If it is a label: several labels need quotes, as in --labels "sky; tree".', "")
    quotes = "" if "/" in text or path.suffix else label
    raise UsageError(f"There is no file or folder {text}.{near}{quotes}")


def fixed_part(text: str) -> Path:
    """Return the file or folder that INPUT names. For a pattern, return the folder above its first wildcard.

    A part that exists literally, such as `photos [2024]`, is not a wildcard.
    """
    path = Path(text).absolute()
    if os.path.exists(path) or not glob.has_magic(text):
        return path
    fixed = Path(path.anchor)
    for part in path.parts[1:-1]:
        if glob.has_magic(part) and not os.path.exists(fixed / part):
            break
        fixed /= part
    return fixed


def open_source(text: str, remote: Remote | None = None, exclude: Sequence[str] = ()) -> Source:
    """Open an INPUT.

    Args:
        remote: how buckets are listed. None: a URL of a folder is an error.
        text: a folder, a glob, a URL, an image, a list or a COCO file.
        exclude: patterns of files and folders to skip, as in `Filter`.

    Raises:
        UsageError: INPUT does not exist, or is of no supported kind.
    """
    keep = Filter(exclude)
    if is_remote(text):
        return _url(text, remote, keep)
    check_source(text)
    path, fixed = Path(text), fixed_part(text)
    if is_workdir(fixed):
        raise UsageError(
            f"{text} is the workdir of a run. Give the folder of the images; edited images are in {fixed / 'edited'}."
        )
    if os.path.isdir(path):
        lists = (path / f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet"))
        metadata = next(filter(os.path.isfile, lists), None)
        return open_source(str(metadata), remote, exclude) if metadata else _folder(path, keep)
    if not os.path.exists(path):
        return _glob(text, fixed, keep)
    if reader := READERS.get(path.suffix.lower()):
        source = reader(path)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        source = Source(text, [], iter([Entry(str(path.absolute()), plain(path.name), text)]))
    else:
        raise UsageError(
            f"{text} is no folder, image or list. INPUT is a folder, a glob, a {' '.join([*READERS][:-1])} list, "
            "or a COCO .json."
        )
    source.place = Path(os.path.abspath(path)).parent.parts
    source.entries = _kept(source.entries, keep, source.counts)
    return source


def _kept(entries: Iterator[Entry], keep: Filter, counts: Counts) -> Iterator[Entry]:
    """Yield the entries of a list that the patterns do not exclude."""
    for entry in entries:
        if keep.excludes_entry(entry.file_name, entry.path):
            counts.count("excluded", entry.path)
        else:
            yield entry


def _folder(root: Path, keep: Filter) -> Source:
    root = root.absolute()
    source = Source(str(root), [], iter(()), folder=root.name, place=Path(os.path.abspath(root)).parts)
    source.entries = _images(find_files(root, EVERYTHING, keep, source.counts), str(root), source.counts)
    return source


def _images(files: Iterable[tuple[str, str]], where: str, counts: Counts) -> Iterator[Entry]:
    for path, relative in files:
        if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
            yield Entry(path, plain(relative), where)
        else:
            counts.count("skipped")


def _url(url: str, remote: Remote | None, keep: Filter) -> Source:
    """Open one image, or a folder of a bucket."""
    scheme = urls.scheme_of(url)
    name = urls.name_of(url)
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        place = tuple(urls.shown(url).split("/")[:-1])
        return Source(urls.shown(url), [], iter([Entry(url, plain(name), urls.shown(url))]), place=place)
    if scheme in ("http", "https"):
        raise UsageError(
            f"{urls.shown(url)} is no image by its name, and a web server cannot be listed. "
            "Write the images' URLs into a list (.txt, .csv, .jsonl, .parquet)."
        )
    if remote is None:
        allowed = spelled("--allow-remote", setting("run.allow_remote", True))
        raise UsageError(f"{url} is on a network. Give {allowed} to list it and to fetch its images.")
    source = Source(url, [], iter(()), folder=name.rpartition("/")[2], place=tuple(url.rstrip("/").split("/")))
    source.entries = _bucket(url, remote, keep, source.counts)
    return source


def _bucket(root: str, remote: Remote, keep: Filter, counts: Counts) -> Iterator[Entry]:
    """Yield the images under a folder of a bucket, in the order of a local folder."""

    def visit(url: str, relative: str) -> Iterator[Entry]:
        for found in urls.listing(url, remote):
            name = found["name"]
            if keep.leaves_out(relative + name, found["url"], counts) or name.startswith("."):
                continue
            if found["folder"]:
                yield from visit(found["url"], f"{relative}{name}/")
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                size, mtime = found["bytes"], found["mtime_ns"]
                yield Entry(found["url"], plain(relative + name), root, bytes=size, mtime_ns=mtime)
            else:
                counts.count("skipped")

    yield from visit(root, "")


def _glob(pattern: str, fixed: Path, keep: Filter) -> Source:
    """Open the images that match a pattern. `fixed` is the folder above its first wildcard."""
    source = Source(pattern, [], iter(()), place=Path(os.path.abspath(fixed)).parts)

    def entries() -> Iterator[Entry]:
        found = sorted(_fitting(fixed, Path(pattern), keep, source.counts), key=lambda file: os.fsencode(file[0]))
        yield from _images(found, pattern, source.counts)

    source.entries = entries()
    return source


def _fitting(fixed: Path, pattern: Path, keep: Filter, counts: Counts) -> Iterator[tuple[str, str]]:
    return find_files(fixed, pattern.absolute().parts[len(fixed.parts) :], keep, counts)
