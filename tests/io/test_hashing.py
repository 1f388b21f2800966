"""The hash of a large file is kept between processes until the file changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ovseg_batch.io import hashing, user_cache


def test_the_hash_of_a_large_file_is_kept_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def content_hash(file: Path, compute: Callable[[Path], str] = hashing._whole_hash) -> str:
        read.append(file)
        return compute(file)

    monkeypatch.setattr(hashing, "LARGE", 0)
    monkeypatch.setattr(hashing, "_whole_hash", content_hash)
    monkeypatch.setattr(user_cache, "SETTLED_SECONDS", -1)
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights.pt"

    def hashed() -> str:
        hashing._hash.cache_clear()  # as in another process
        return hashing.file_hash(file)

    file.write_bytes(b"first")
    first = hashed()
    assert hashed() == first and len(read) == 1
    times = file.stat().st_mtime_ns
    file.write_bytes(b"other")
    os.utime(file, ns=(times, times))  # size and time of writing are those of before
    other = hashed()
    assert other != first and len(read) == 2
    (record,) = (tmp_path / "cache" / "hashes").iterdir()
    for damaged in ("", "[]", '{"file": null}', record.read_text()[:-5]):
        record.write_text(damaged)
        assert hashed() == other
    assert len(read) == 6
    monkeypatch.setattr(user_cache, "SETTLED_SECONDS", 60.0)
    record.unlink()
    assert hashed() == other and not record.exists()
