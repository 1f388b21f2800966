"""Content hashes of files, of texts, and of names with their arrays."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ovseg_batch import units
from ovseg_batch.io.user_cache import KnownHash
from ovseg_batch.types.arrays import AnyArray

log = logging.getLogger(__name__)

BLOCK = 1 << 22  # bytes
LARGE = 1 << 26  # bytes; hashes of larger files are cached between runs
SHA256, GIT_SHA1 = 64, 40  # hex digits


class ContentDigest:
    """Incremental hash of names and arrays. It does not depend on how they are split into parts."""

    def __init__(self) -> None:
        self._names, self._numbers = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)

    def add(self, names: Iterable[str], numbers: AnyArray) -> None:
        for name in names:
            self._names.update(f"{name}\0".encode("utf-8", "surrogatepass"))
        self._numbers.update(np.ascontiguousarray(numbers).tobytes())

    def __str__(self) -> str:
        return self._names.hexdigest() + self._numbers.hexdigest()


def key_hash(key: str) -> int:
    """Return a 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")


def content_hash(content: bytes) -> str:
    """Return 64 bits of the BLAKE2b hash of a file's content, in hex."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def file_hash(path: str | Path) -> str:
    """Return the BLAKE2b hash of a file in hex. It is computed once per size and modification time."""
    status = Path(path).stat()
    return _hash(str(path), status.st_size, status.st_mtime_ns)


def file_digest(file: Path, kind: Literal["sha256", "sha1"] = "sha256") -> str:
    """Return the hash of a file in hex: `sha256`, or `sha1` as Git computes it over a blob."""
    digest = hashlib.new(kind, usedforsecurity=False)
    if kind == "sha1":
        digest.update(b"blob %d\0" % file.stat().st_size)
    for block in _blocks(file):
        digest.update(block)
    return digest.hexdigest()


def listing_hash(folder: Path, suffix: str) -> str:
    """Return the BLAKE2b hash in hex of names, sizes and modification times of the files with a suffix in a folder."""
    with os.scandir(folder) as entries:
        listed = sorted((one.name, one.stat()) for one in entries if one.name.endswith(suffix))
    digest = hashlib.blake2b(digest_size=16)
    for name, status in listed:
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def _hash(path: str, size: int, mtime_ns: int) -> str:
    if size < LARGE:
        return _whole_hash(Path(path))
    known = KnownHash(Path(path))
    value = known.read()
    if value is None:
        log.info("reading %s (%s) once, for its hash", Path(path).name, units.size(size))
        value = _whole_hash(Path(path))
        known.write(value)
    return value


def _whole_hash(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for block in _blocks(file):
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            yield block
