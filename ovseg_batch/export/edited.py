"""Publish the edited images of the latest run as the folder `edited/`, in the folder structure of the input.

The committed files stay in the folder of the stage. A new folder of hard links to them replaces `edited/` when it is
complete, so readers see the files of one run only. On file systems without hard links, the files are copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ovseg_batch import failpoints
from ovseg_batch.io.atomic import damage, fsync_folder, temporary_path, write_text
from ovseg_batch.types import FileRecord, Unchanged
from ovseg_batch.workdir.committed import read_lines
from ovseg_batch.workdir.findings import EditCounts
from ovseg_batch.workdir.store import FILES, Problem, StageStore, Workdir

OUTDATED = "outdated"  # content of the marker while `edited/` is written, and after a repair


def publish_edited(workdir: Workdir, store: StageStore | None) -> int | None:
    """Update `edited/` to the committed files of the stage. If it is up to date, nothing is done.

    Args:
        store: the edit stage. None: remove the files of an earlier run with edits.

    Returns:
        The number of edited images. None without an edit stage.
    """
    marker = _marker(workdir)
    if store is None:
        if marker.is_file():
            shutil.rmtree(workdir.edited, ignore_errors=True)
            marker.unlink()
        return None
    digest, count = _digest(store)
    if _is_published(workdir, digest):
        return count
    write_text(marker, f"{OUTDATED}\n")  # a later run without edits removes these files if this process is killed
    fresh = temporary_path(workdir.edited)
    fresh.mkdir()
    try:
        for file in _edited_files(store):
            _link(store.folder / file.path, fresh / file.path.removeprefix(f"{FILES}/"))
        fsync_folder(fresh)
        failpoints.reach("linked")
        old = temporary_path(workdir.edited)
        if workdir.edited.is_dir():
            workdir.edited.rename(old)
        failpoints.reach("between")
        fresh.rename(workdir.edited)
        fsync_folder(workdir.root)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    write_text(marker, f"{digest}\n")
    return count


def _is_published(workdir: Workdir, digest: str) -> bool:
    marker = _marker(workdir)
    return workdir.edited.is_dir() and marker.is_file() and marker.read_bytes().strip() == digest.encode()


def _marker(workdir: Workdir) -> Path:
    return workdir.root / "stages" / "edited.txt"


def verify_edited(workdir: Workdir, store: StageStore) -> Iterator[Problem]:
    """Yield the files in `edited/` that differ from their commits. Links to committed files are not read."""
    if not _is_published(workdir, _digest(store)[0]):
        return
    for file in _edited_files(store):
        published = workdir.edited / file.path.removeprefix(f"{FILES}/")
        with suppress(OSError):
            if published.samefile(store.folder / file.path):
                continue
        if what := damage(workdir.edited, replace(file, path=file.path.removeprefix(f"{FILES}/"))):
            yield Problem(published, what)


def unpublish_edited(workdir: Workdir) -> None:
    """Mark `edited/` as outdated, so that the next run writes it again, or removes it if it has no edit."""
    if _marker(workdir).is_file():
        write_text(_marker(workdir), f"{OUTDATED}\n")


def count_edits(store: StageStore, mode: str) -> EditCounts:
    """Count the edited images of a finished edit stage, and those on which the edit has no effect.

    Args:
        mode: `edit.mode` of the run.
    """
    images, skipped, unchanged = 0, 0, Counter[str]()
    for commit in store.commits():
        for line in read_lines(store, commit.shard, ["files", "unchanged"]):
            if line["files"]:
                images += 1
                unchanged[line["unchanged"]] += 1
            elif line["unchanged"] == Unchanged.NO_MASK:
                skipped += 1
    return EditCounts(mode, images, unchanged[Unchanged.NO_MASK], unchanged[Unchanged.WHOLE_IMAGE], skipped)


def _digest(store: StageStore) -> tuple[str, int]:
    """Return a hash of the committed files, and their number."""
    digest, count = hashlib.blake2b(store.fingerprint.encode(), digest_size=16), 0
    for file in _edited_files(store):
        digest.update(f"{file.path}\0{file.blake2b}\n".encode())
        count += 1
    return digest.hexdigest(), count


def _edited_files(store: StageStore) -> Iterator[FileRecord]:
    return (file for commit in store.commits() for file in commit.files if file.path.startswith(f"{FILES}/"))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
