"""The workdir: stage folders named by fingerprint, data files, and commit records.

A shard exists if its commit record parses, names this fingerprint, and its files have the recorded sizes. The data
files are made durable first, and the record last. A killed process therefore leaves a complete shard or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.io import locks
from ovseg_batch.io.atomic import (
    TEMPORARY_SUFFIX,
    damage,
    delete,
    file_record,
    fsync_folder,
    link,
    remove_leftovers,
    temporaries_in,
    write_bytes,
    write_text,
)
from ovseg_batch.io.marks import MANIFEST, PLAN
from ovseg_batch.io.records import PlanRecord
from ovseg_batch.io.sealed import seal, unseal
from ovseg_batch.types import Commit, FileRecord
from ovseg_batch.wording import spelled

FORMAT_VERSION = 1
SHARDS_PER_FOLDER = 1000
LOCK = ".lock"
PUBLISH_LOCK = ".publish.lock"
OUTPUTS = "outputs.json"
FILES = "files"


@dataclass(frozen=True, slots=True)
class Problem:
    """A file in a workdir that differs from its commit. `shard` is the shard to compute again, if any."""

    path: Path
    what: str
    store: StageStore | None = None
    shard: int | None = None


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Return the BLAKE2b hash (32 hex digits) of the canonical JSON of all inputs that decide a stage's result."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class StageStore:
    """The folder of one stage, with its committed shards."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        fingerprint: str,
        revisions: Mapping[int, int] | None = None,
        upstream: Mapping[str, StageStore] | None = None,
        beside: Sequence[Path] = (),
    ) -> None:
        self.folder = folder
        self.stage = stage
        self.fingerprint = fingerprint
        self.upstream = dict(upstream or {})
        self.beside = tuple(beside)  # folders `stages` of other workdirs that `variants` searches too
        self._revisions = revisions or {}  # shard → revision of the manifest that its commit must carry

    def revision(self, shard: int) -> int:
        """Return the revision of the manifest in which the shard's rows last changed."""
        return self._revisions.get(shard, 0)

    def data_path(self, shard: int, suffix: str) -> Path:
        return self.folder / "data" / f"{shard // SHARDS_PER_FOLDER:03d}" / f"{shard:06d}{suffix}"

    @property
    def files(self) -> Path:
        """The folder of the stage's output files."""
        return self.folder / FILES

    @property
    def parts(self) -> Path:
        """The folder of unfinished output files."""
        return self.folder / "parts"

    def commit_path(self, shard: int) -> Path:
        return self.folder / "commits" / f"{shard // SHARDS_PER_FOLDER:03d}" / f"{shard:06d}.json"

    def create(self, inputs: Mapping[str, Any]) -> None:
        """Create the folder and its `stage.json`, which lists the inputs of the fingerprint."""
        path = self.folder / "stage.json"
        if not path.exists():
            description = {"version": FORMAT_VERSION, "stage": self.stage, "fingerprint": self.fingerprint}
            write_text(path, json.dumps({**description, "inputs": inputs}, indent=2, ensure_ascii=False) + "\n")

    def read_commit(self, shard: int, outdated: bool = False) -> Commit | None:
        """Return the shard's commit, or None if there is no valid one.

        Args:
            outdated: also return a commit that is not current.
        """
        commit = self.read_sealed(shard)
        if commit is None or (commit.fingerprint, commit.shard) != (self.fingerprint, shard):
            return None
        if not outdated and not self.is_current(commit):
            return None
        try:
            sizes_match = all((self.folder / f.path).stat().st_size == f.bytes for f in commit.files)
        except OSError:
            return None
        return commit if sizes_match else None

    def is_current(self, commit: Commit) -> bool:
        """Return whether a commit has the manifest's revision and was computed from the present upstream commits."""
        if commit.revision != self.revision(commit.shard):
            return False
        upstream = self.upstream_commits(commit.shard)
        return upstream is not None and all(
            commit.upstream.get(name, above.digest) == above.digest for name, above in upstream.items()
        )

    def upstream_commits(self, shard: int) -> dict[str, Commit] | None:
        """Return upstream stage → commit of the shard, or None if one is missing."""
        found = {name: store.read_commit(shard) for name, store in self.upstream.items()}
        commits = {name: commit for name, commit in found.items() if commit is not None}
        return commits if len(commits) == len(found) else None

    def read_sealed(self, shard: int) -> Commit | None:
        """Return the shard's commit if its record is intact, without further checks, otherwise None."""
        try:
            commit = Commit.from_record(unseal(self.commit_path(shard).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return commit if commit.version == FORMAT_VERSION else None

    def commits(self) -> Iterator[Commit]:
        """Yield every valid commit, in shard order."""
        for shard in self._recorded_shards():
            commit = self.read_commit(shard)
            if commit is not None:
                yield commit

    def missing(self, shards: int) -> list[int]:
        """Return the shards of 0 … shards-1 without a valid commit."""
        done = {commit.shard for commit in self.commits()}
        return [shard for shard in range(shards) if shard not in done]

    def publishing(self) -> AbstractContextManager[None]:
        """Lock the shards, so that two processes cannot replace the files of one shard at the same time."""
        return locks.exclusive(self.folder / PUBLISH_LOCK)

    def write_commit(self, commit: Commit) -> None:
        write_bytes(self.commit_path(commit.shard), seal(commit.to_record()))

    def adopt(self, other: StageStore) -> int:
        """Link missing shards that another workdir has committed under this fingerprint. Return their number.

        The files are hard links, or symbolic links where the file system has no hard links. Replacing a shard replaces
        only the link in this workdir.
        """
        adopted = 0
        for commit in other.commits():
            with self.publishing():
                if commit.fingerprint != self.fingerprint or self.read_commit(commit.shard) is not None:
                    continue
                folders = set()
                for file in commit.files:
                    target = self.folder / file.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.unlink(missing_ok=True)
                    link(other.folder / file.path, target)
                    folders.add(target.parent)
                for folder in folders:
                    fsync_folder(folder)
                write_bytes(self.commit_path(commit.shard), other.commit_path(commit.shard).read_bytes())
                adopted += 1
        return adopted

    def remove_files(self, paths: Iterable[str]) -> None:
        """Delete output files, named as in a commit, that no commit lists any more."""
        for path in paths:
            if path.startswith(f"{FILES}/"):
                (self.folder / path).unlink(missing_ok=True)

    def uncommit(self, shard: int) -> None:
        """Delete the shard's commit, before its files are replaced."""
        path = self.commit_path(shard)
        if path.exists():
            path.unlink()
            fsync_folder(path.parent)

    def verify(self, shards: int) -> Iterator[Problem]:
        """Read every committed file. Yield files that are damaged, missing, or in no commit."""
        claimed: set[Path] = set()
        for shard in self._recorded_shards():
            path = self.commit_path(shard)
            commit = self.read_sealed(shard)
            if commit is None:
                yield Problem(path, "the commit record is damaged", self, shard)
            elif (commit.fingerprint, commit.shard) != (self.fingerprint, shard) or shard >= shards:
                yield Problem(path, "the commit record is another shard's or another run's", self, shard)
            else:
                claimed.update(self.folder / file.path for file in commit.files if file.path.startswith("data/"))
                for file in commit.files:
                    what = damage(self.folder, file)
                    if what:
                        yield Problem(self.folder / file.path, what, self, shard)
        for path in sorted((self.folder / "data").glob("*/*")):
            if path not in claimed and not path.name.startswith("."):
                yield Problem(path, "it is in no commit")

    def in_use(self, inputs: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Create and lock the folder, so that `gc` does not delete it."""
        return locks.shared(self.folder / LOCK, lambda: self.create(inputs))

    def _recorded_shards(self) -> Iterator[int]:
        commits = self.folder / "commits"
        if not commits.is_dir():
            return
        for folder in sorted(commits.iterdir()):
            yield from sorted(int(entry.stem) for entry in folder.glob("*.json") if entry.stem.isdecimal())


class Workdir:
    """The output folder of runs: outputs at its top, stage folders under `stages/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest(self) -> Path:
        return self.root / MANIFEST

    @property
    def annotations(self) -> Path:
        return self.root / "annotations.json"

    @property
    def failures(self) -> Path:
        return self.root / "failures.csv"

    @property
    def edited(self) -> Path:
        return self.root / "edited"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def trial(self) -> Path:
        """The record of a trial: the images that were sampled. Other workdirs have none."""
        return self.root / "try.json"

    @property
    def plan(self) -> Path:
        """The file that names the stage folders of the latest run, so that `status` needs no model and no config."""
        return self.root / PLAN

    def owns(self, path: Path) -> bool:
        """Return whether a path is a file that runs write and replace, or lies in one of their folders.

        Args:
            path: absolute, without symbolic links.
        """
        root = self.root.resolve()
        written = ("stages", self.edited.name, self.annotations.name, self.failures.name, self.config.name)
        return path.is_relative_to(root) and path != root and path.relative_to(root).parts[0] in written

    def create(self) -> None:
        """Create the folder and check that it is writable, before any work starts."""
        try:
            (self.root / "stages").mkdir(parents=True, exist_ok=True)
            write_text(self.root / "stages" / ".writable", "")
            (self.root / "stages" / ".writable").unlink(missing_ok=True)
        except OSError as error:
            raise OvsegError(
                f"Cannot write to the workdir {self.root}: {error.strerror or error}. "
                "Committed shards are kept. Correct the cause and "
                f"{spelled('give the same command again, or another -o', 'call it again, or with another workdir=')}."
            ) from None

    def remove_leftovers(self) -> int:
        """Delete temporary files of processes that have ended. Return their number.

        This is called before a run, because killed runs leave such files, which would fill the disk over time.
        """
        pattern = f".*{TEMPORARY_SUFFIX}"
        found = [*temporaries_in(self.root), *temporaries_in(self.root / "stages")]
        for part in (self.root / "stages").glob("*/*"):
            if part.name != FILES:  # may hold millions of files, none of them temporary
                found += part.rglob(pattern) if part.is_dir() else [part] if fnmatch(part.name, pattern) else []
        return remove_leftovers(found)

    def stage(
        self,
        name: str,
        fingerprint: str,
        revisions: Mapping[int, int] | None = None,
        upstream: Mapping[str, StageStore] | None = None,
        beside: Sequence[Path] = (),
    ) -> StageStore:
        folder = self.root / "stages" / f"{name}-{fingerprint[:8]}"
        return StageStore(folder, name, fingerprint, revisions, upstream, beside)

    def stores(self) -> list[StageStore]:
        """Return the stage folders of the latest run, in order. Raises UsageError if there is no run."""
        plan = self.read_plan()
        stores: dict[str, StageStore] = {}
        for entry in plan["stages"]:
            folder, name = self.root / "stages" / entry["folder"], entry["name"]
            upstream = {need: stores[need] for need in entry["needs"]}
            stores[name] = StageStore(folder, name, entry["fingerprint"], plan["revisions"], upstream)
        return list(stores.values())

    def exclusive(self) -> AbstractContextManager[None]:
        """Lock the files at the top of the workdir (settings, plan, outputs), which one process at a time writes."""
        return locks.exclusive(self.root / "stages" / LOCK)

    def made_of(self) -> list[str]:
        """Return the fingerprints of the manifest and of the stages that the outputs depend on."""
        plan = self.read_plan()
        return [plan["manifest"], *(stage["fingerprint"] for stage in plan["stages"])]

    def seal_outputs(self, paths: Iterable[Path], facts: Mapping[str, Any]) -> None:
        """Write the record of the outputs: hashes of the files for `verify`, and facts about the finished run."""
        files = [dataclasses.asdict(file_record(path, self.root)) for path in paths]
        record = {"version": FORMAT_VERSION, "files": files, **facts}
        write_bytes(self.root / "stages" / OUTPUTS, seal(record))

    def unseal_outputs(self) -> None:
        """Delete the record of the outputs, because they no longer match the commits."""
        (self.root / "stages" / OUTPUTS).unlink(missing_ok=True)

    def sealed_outputs(self) -> dict[str, Any] | None:
        """Return the record of the outputs if the files have the recorded sizes, otherwise None."""
        try:
            record = unseal((self.root / "stages" / OUTPUTS).read_bytes())
            same = all((self.root / file["path"]).stat().st_size == file["bytes"] for file in record["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if same else None

    def verify(self) -> list[Problem]:
        """Return all differences between the files of the latest run and their records. Reads all bytes."""
        shards = self.read_plan()["shards"]
        problems = [problem for store in self.stores() for problem in store.verify(shards)]
        path = self.root / "stages" / OUTPUTS
        if path.exists():
            try:
                record = unseal(path.read_bytes())
                files = [FileRecord.from_record(file) for file in record["files"]]
            except (ValueError, KeyError, TypeError):
                return [*problems, Problem(path, "the record of the outputs is damaged")]
            if record.get("made_of", self.made_of()) != self.made_of():
                problems.append(Problem(self.annotations, "it belongs to another run than config.yaml"))
            for file in files:
                if what := damage(self.root, file):
                    advice = ". Delete it, and the next run lists the images again" if file.path == MANIFEST else ""
                    problems.append(Problem(self.root / file.path, f"{what}{advice}"))
        return problems

    def unused(self) -> list[Path]:
        """Return stage folders that the latest run does not use and no process has locked. Links are not locked."""
        named = {entry["folder"] for entry in self.read_plan()["stages"]}
        found = []
        for folder in sorted(path.parent for path in (self.root / "stages").glob("*/stage.json")):
            with nullcontext(True) if folder.is_symlink() else locks.if_free(folder / LOCK) as unused:
                if unused and folder.name not in named:
                    found.append(folder)
        return found

    def remove(self, folder: Path) -> None:
        """Delete a stage folder that no run uses. After a crash, `unused` returns the remaining folder again.

        If the folder is a link, only the link is deleted, because another workdir may share the target.
        """
        if folder.is_symlink():
            folder.unlink()
            return
        with locks.if_free(folder / LOCK) as unused:
            if unused:
                for part in sorted(folder.iterdir(), key=lambda path: (path.name == LOCK, path.name == "stage.json")):
                    delete(part)
                with suppress(OSError):  # a new run has created its folder again
                    folder.rmdir()

    def write_plan(self, record: Mapping[str, Any]) -> None:
        """Record the stages and the manifest of the run in progress."""
        write_text(self.plan, json.dumps({"version": FORMAT_VERSION, **record}, indent=2, ensure_ascii=False) + "\n")

    def read_plan(self) -> dict[str, Any]:
        """Read the record of the latest run. Raises UsageError if there is none."""
        try:
            return PlanRecord.model_validate_json(self.plan.read_bytes()).model_dump()
        except FileNotFoundError:
            raise UsageError(f"{self.root} is not a workdir: it has no {self.plan.relative_to(self.root)}.") from None
        except OSError as error:
            raise OvsegError(f"Cannot read {self.plan}: {error.strerror or error}.") from None
        except ValueError:
            raise OvsegError(f"{self.plan} is damaged. Give the command of the run again, which writes it.") from None
