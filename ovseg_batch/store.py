"""The workdir: stage folders named by fingerprint, closed data files, and the commit records that make them count.

A shard exists when its commit record parses, names this fingerprint, and its files have the recorded sizes. The data
files are made durable first and the record last, so whatever kills the process leaves either a whole shard or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.io.atomic import TEMPORARY_SUFFIX, owner_is_gone, write_text
from ovseg_batch.types import Commit, FileRecord

FORMAT_VERSION = 1
SHARDS_PER_FOLDER = 1000


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """32 hex digits of BLAKE2b over the canonical JSON of everything that decides a stage's result."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_record(path: Path, root: Path) -> FileRecord:
    """Size and BLAKE2b (16 bytes) of the file as it reads back from the file system."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileRecord(path.relative_to(root).as_posix(), path.stat().st_size, digest.hexdigest())


class StageStore:
    """One stage's folder: where its shards go and which of them are committed."""

    def __init__(self, folder: Path, stage: str, fingerprint: str) -> None:
        self.folder = folder
        self.stage = stage
        self.fingerprint = fingerprint

    def data_path(self, shard: int, suffix: str) -> Path:
        return self.folder / "data" / f"{shard // SHARDS_PER_FOLDER:03d}" / f"{shard:06d}{suffix}"

    def commit_path(self, shard: int) -> Path:
        return self.folder / "commits" / f"{shard // SHARDS_PER_FOLDER:03d}" / f"{shard:06d}.json"

    def create(self, inputs: Mapping[str, Any]) -> None:
        """Make the folder and its `stage.json`, which says in clear what the fingerprint stands for."""
        path = self.folder / "stage.json"
        if not path.exists():
            description = {"version": FORMAT_VERSION, "stage": self.stage, "fingerprint": self.fingerprint}
            write_text(path, json.dumps({**description, "inputs": inputs}, indent=2, ensure_ascii=False) + "\n")

    def read_commit(self, shard: int) -> Commit | None:
        """The shard's commit, or None where there is none that can be relied on."""
        try:
            record = json.loads(self.commit_path(shard).read_bytes())
            record["files"] = tuple(FileRecord(**file) for file in record["files"])
            commit = Commit(**record)
            sizes_match = all((self.folder / f.path).stat().st_size == f.bytes for f in commit.files)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        ours = commit.fingerprint == self.fingerprint and commit.shard == shard and commit.version == FORMAT_VERSION
        return commit if ours and sizes_match else None

    def commits(self) -> Iterator[Commit]:
        """Every reliable commit, in shard order."""
        for shard in self._recorded_shards():
            commit = self.read_commit(shard)
            if commit is not None:
                yield commit

    def missing(self, shards: int) -> list[int]:
        """The shards of 0 … shards-1 that have no reliable commit yet."""
        done = {commit.shard for commit in self.commits()}
        return [shard for shard in range(shards) if shard not in done]

    def write_commit(self, commit: Commit) -> None:
        text = json.dumps(dataclasses.asdict(commit), ensure_ascii=False, separators=(",", ":"))
        write_text(self.commit_path(commit.shard), text + "\n")

    def _recorded_shards(self) -> Iterator[int]:
        commits = self.folder / "commits"
        if not commits.is_dir():
            return
        for folder in sorted(commits.iterdir()):
            yield from sorted(int(entry.stem) for entry in folder.glob("*.json") if entry.stem.isdigit())


class Workdir:
    """The folder a run leaves behind: results at its top, the machine's part under `stages/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.parquet"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def plan(self) -> Path:
        """Which stage folders the latest run uses, so that `status` needs no model and no config."""
        return self.root / "stages" / "plan.json"

    def create(self) -> None:
        """Make the folder and see that it can be written, before any work is done for it."""
        try:
            (self.root / "stages").mkdir(parents=True, exist_ok=True)
            write_text(self.root / "stages" / ".writable", "")
            (self.root / "stages" / ".writable").unlink()
        except OSError as error:
            raise OvsegError(
                f"Cannot write to the workdir {self.root}: {error.strerror or error}. Choose another one with -o."
            ) from None

    def remove_leftovers(self) -> int:
        """Delete temporary files that no living process of this host owns; how many there were.

        Called before a run: a killed one leaves them, and they would fill the disk one crash at a time.
        """
        pattern, removed = f".*{TEMPORARY_SUFFIX}", 0
        for path in [*self.root.glob(pattern), *(self.root / "stages").rglob(pattern)]:
            if owner_is_gone(path):
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def stage(self, name: str, fingerprint: str) -> StageStore:
        return StageStore(self.root / "stages" / f"{name}-{fingerprint[:8]}", name, fingerprint)

    def write_plan(self, record: Mapping[str, Any]) -> None:
        """Say which stages the run in progress has, and of which manifest it is."""
        write_text(self.plan, json.dumps({"version": FORMAT_VERSION, **record}, indent=2, ensure_ascii=False) + "\n")

    def read_plan(self) -> dict[str, Any]:
        """Raises UsageError where there is no run."""
        try:
            record: dict[str, Any] = json.loads(self.plan.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{self.root} is not a workdir: it has no {self.plan.relative_to(self.root)}.") from None
        except (OSError, ValueError) as error:
            raise OvsegError(f"Cannot read {self.plan}: {error}") from None
        return record
