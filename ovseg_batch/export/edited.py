"""`edited/`: the edited images of the latest run in the tree of the input, and of no other run.

The images lie in the stage's folder, where they were committed. `edited/` is made of hard links to them, beside the
old one, and takes its place when it is whole: a reader sees all files of one run. Where the file system has no hard
links the files are copied.
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
from ovseg_batch.io.atomic import fsync_folder, temporary_path, write_text
from ovseg_batch.types import FileRecord, Unchanged
from ovseg_batch.workdir.committed import read_lines
from ovseg_batch.workdir.findings import EditCounts
from ovseg_batch.workdir.store import FILES, Problem, StageStore, Workdir, damage

BEGUN = "begun"  # content of the marker while `edited/` is made


def publish_edited(workdir: Workdir, store: StageStore | None) -> int | None:
    """Bring `edited/` up to what the stage has committed. Nothing is done where it is so already.

    Args:
        store: the stage of edits; None removes what an earlier run with edits has left.

    Returns:
        The number of edited images; None without a stage.
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
    write_text(marker, f"{BEGUN}\n")  # a run without edits removes what this one has published when it is killed
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
    """Yield what of `edited/` differs from the commits that it was made of. Links to committed files are not read."""
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
    """Let the next run make `edited/` again."""
    _marker(workdir).unlink(missing_ok=True)


def count_edits(store: StageStore, mode: str) -> EditCounts:
    """Count the edited images of a finished edit stage, and those without an effect, from its tables.

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
    """What the committed files are, in one line, and how many there are."""
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
