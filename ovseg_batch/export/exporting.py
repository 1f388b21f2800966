"""Bring a run into another tool's format: shard by shard, in bounded memory, going on where it was stopped.

What a shard gives is written first and its mark last; a shard whose mark is there, and names what it was made of, is
not done again. Formats that are folders write their files where they belong and keep lists of them, by which a later
export removes what is out of date. Formats that are single files keep a part per shard beside their name and are put
together at the end.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from ovseg_batch import failpoints
from ovseg_batch.errors import OvsegError, UsageError, nearest
from ovseg_batch.export.parts import LIST, Parts, ShardFiles, remove_listed, split_path
from ovseg_batch.export.selection import Chooser, ChosenImage, Naming, Selection, shared_names, shortened, stem_of
from ovseg_batch.io.atomic import remove_leftovers, temporaries_in, temporaries_of, write_text
from ovseg_batch.io.marks import EXPORT, is_workdir
from ovseg_batch.io.records import parse_json
from ovseg_batch.types import Commit
from ovseg_batch.wording import spelled
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir, fingerprint

VERSION = 2  # of what is written: another one is another export
PARTS, RECORD = EXPORT.parts  # in a folder that was exported: what it is, and how far
MIN_PARALLEL = 2_000  # images; fewer are exported without other processes

Tally = Counter[str]


@dataclass(frozen=True, slots=True)
class Options:
    """What single formats want to know.

    Attributes:
        images: how image files come into formats that want them: a symbolic link, a copy, or not at all.
        palette: colours of the classes in semantic PNGs: `none` (grey levels) or VOC's.
        ignore_below: pixels of masks with less confidence are 255 in semantic PNGs.
        thresholds: the same for single labels.
        stuff: labels whose masks are one segment an image in panoptic files, beside those of `kind: stuff`.
        tolerance: pixels by which polygons may leave the outline; 0 is exact.
        image_url: what Label Studio finds the images under.
    """

    images: Literal["link", "copy", "none"] = "link"
    palette: Literal["none", "voc"] = "none"
    ignore_below: float = 0.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    stuff: tuple[str, ...] = ()
    tolerance: float = 0.0
    image_url: str = "/data/local-files/?d="

    def check(self, labels: Sequence[str]) -> None:
        """Raises UsageError where it names a label that the run does not have."""
        for label in (*self.stuff, *self.thresholds):
            if label not in labels:
                raise UsageError(f"The run has no label {label!r}.{nearest(label, labels)}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a writer needs. `labels` are the classes of the export in order; `ids` their places in the run's."""

    labels: tuple[str, ...]
    ids: Mapping[str, int]
    has_background: bool
    splits: tuple[str, ...]
    options: Options
    path: Path
    parts: Parts
    info: Mapping[str, object]

    def files(self, owner: int | str) -> ShardFiles:
        """The files of a shard, or of the whole export, below `path`, which is a folder then."""
        return ShardFiles(self.path, self.parts, owner)


class Writer(Protocol):
    """One format."""

    def __init__(self, plan: Plan) -> None: ...

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        """Write what a shard gives; again, if it was begun before. Counts are summed over all shards."""
        ...

    def finish(self, shards: Sequence[int]) -> list[Path]:
        """Write what speaks of all shards; the files or folders a person should know of."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    Attributes:
        name: for `-f`.
        make: its writer.
        head: how each file begins that the writer writes. Empty: the writer writes a folder.
        naming: from the file name of an image to the name of what is made of it.
    """

    name: str
    make: type[Writer]
    head: str
    naming: Naming = stem_of

    @property
    def is_folder(self) -> bool:
        return not self.head

    def wrote(self, path: Path) -> bool:
        """Return whether a file begins as those of this format."""
        head = self.head.encode()
        with path.open("rb") as file:
            return file.read(len(head)) == head


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds, and of how many of the run's shards."""

    paths: list[Path]
    tally: Tally
    shards: int
    of_shards: int

    @property
    def complete(self) -> bool:
        return self.shards == self.of_shards


@dataclass(frozen=True, slots=True)
class Job:
    """An export as it travels to another process."""

    workdir: Path
    format: Format
    path: Path
    selection: Selection
    options: Options
    shared: frozenset[int]

    @property
    def kept(self) -> Path:
        """Where the marks and parts lie."""
        return (
            self.path / PARTS if self.format.is_folder else self.path.with_name(shortened(f".{self.path.name}.parts"))
        )

    def writer(self, results: Results) -> Writer:
        names = self.selection.names(results)
        plan = Plan(
            labels=names,
            ids={name: results.labels.index(name) + 1 for name in names},
            has_background=results.has_background,
            splits=self.selection.splits(results.manifest),
            options=self.options,
            path=self.path,
            parts=Parts(self.kept),
            info={
                "run": results.masks.fingerprint,
                "manifest": results.manifest.fingerprint,
                **results.manifest.id_info,
            },
        )
        return self.format.make(plan)

    def mark(self, shard: int) -> Path:
        """The file that says of what a shard was made."""
        return self.kept / f"{shard:06d}.json"

    def chooser(self, results: Results) -> Chooser:
        return Chooser(results, self.selection, self.shared, self.format.naming)

    def made_of(self, results: Results, commit: Commit) -> str:
        """What a shard is made of: other masks, rows, names, splits or ids, another digest."""
        digest, manifest = hashlib.blake2b(commit.digest.encode(), digest_size=16), results.manifest
        chooser = self.chooser(results)
        for row in manifest.read_shard(commit.shard):
            known = (row.key, row.path, row.bytes, row.mtime_ns, manifest.image_id(row))
            digest.update(repr((*known, chooser.name(row), chooser.split(row))).encode())
        return digest.hexdigest()

    def do(self, results: Results, writer: Writer, shard: int) -> Tally:
        """One committed shard, unless its mark says that it is done."""
        commit = results.masks.read_commit(shard)
        if commit is None:
            raise OvsegError(f"Shard {shard} of {self.workdir} has lost its commit while it was exported; try again.")
        made_of, done = self.made_of(results, commit), _read(self.mark(shard))
        if done.get("made_of") == made_of:
            return Tally(done["tally"])
        with failpoints.within("export"):
            tally = writer.shard(shard, self.chooser(results).shard(shard))
            write_text(self.mark(shard), json.dumps({"made_of": made_of, "tally": tally}))
            failpoints.reach("marked")
        return tally


def export(
    workdir: Workdir,
    format: Format,
    path: Path,
    selection: Selection,
    options: Options,
    workers: int | None = None,
    advance: Callable[[int], object] = lambda rows: None,
    overwrite: bool = False,
) -> Exported:
    """Write what a run has committed so far into `path`.

    Args:
        path: a file that does not exist or is an export of this format, which is replaced; or a folder that is empty
            or holds the same export, which then goes on.
        overwrite: replace any file, and any folder that holds an export.
        workers: processes; 0: none but this one; None: as many as there are cores, where it is worth it.
        advance: called with the number of manifest rows that are finished.

    Raises:
        UsageError: the selection or the options do not fit the run, or `path` holds something else.
        OvsegError: nothing is committed yet.
    """
    results = Results.open(workdir)
    selection.check(results)
    options.check(results.labels)
    options = replace(options, stuff=tuple(one for one in results.labels if one in {*options.stuff, *results.stuff}))
    commits = list(results.masks.commits())
    if not commits:
        raise OvsegError(f"The run in {workdir.root} has not committed any masks yet; there is nothing to export.")
    job = Job(workdir.root, format, path, selection, options, shared_names(results.manifest, format.naming))
    state = {"version": VERSION, "format": format.name, "run": results.masks.fingerprint}
    state |= {"selection": asdict(selection), "options": asdict(options)}
    made = {commit.shard: job.made_of(results, commit) for commit in commits}
    shards, made_of = list(made), hashlib.blake2b("".join(made.values()).encode(), digest_size=16).hexdigest()
    splits = selection.splits(results.manifest)
    known = _enter(job, fingerprint(state), splits, overwrite)
    if known.get("made_of") == made_of:
        advance(sum(commit.rows for commit in commits))
        return Exported([path / name for name in known["paths"]], Tally(known["tally"]), len(shards), len(shards))
    _forget(job, fingerprint(state), made, splits)
    tally, rows = Tally(), {commit.shard: commit.rows for commit in commits}
    if workers is None:
        workers = (os.cpu_count() or 1) if sum(rows.values()) > MIN_PARALLEL else 0
    for shard, counted in _all_shards(job, results, shards, workers):
        tally += counted
        advance(rows[shard])
    with failpoints.within("export"):
        paths = job.writer(results).finish(shards)
    if len(shards) == results.manifest.shards:
        _leave(job, {**_record(fingerprint(state)), "made_of": made_of, "tally": tally}, paths)
    return Exported(paths, tally, len(shards), results.manifest.shards)


def _enter(job: Job, state: str, splits: Sequence[str], overwrite: bool) -> dict[str, Any]:
    """Require a destination that may be written; return what is known of this same export there.

    Raises:
        UsageError: the destination holds something else.
    """
    path = job.path.resolve()
    for folder in path.parents:
        if is_workdir(folder) and Workdir(folder).owns(path):
            raise UsageError(f"{job.path} belongs to the workdir {folder}. Give another {spelled('-o', 'path')}.")
    if not job.format.is_folder:
        _check_files(job, splits, overwrite)
    known = _read(job.kept / RECORD)
    if known.get("fingerprint") == state:
        return known
    if not job.format.is_folder:
        shutil.rmtree(job.kept, ignore_errors=True)
    elif job.path.exists() and (not job.path.is_dir() or any(job.path.iterdir())):
        if not known:
            raise UsageError(
                f"{job.path} holds something else than an export. Give another {spelled('-o', 'path')}, or delete it."
            )
        if not overwrite:
            raise UsageError(f"{job.path} holds an export with other settings or of another run. {_otherwise()}")
        if known.get("version") != VERSION:
            raise UsageError(
                f"{job.path} holds an export of another version of ovseg-batch, which has not listed its files. "
                f"Give another {spelled('-o', 'path')}, or delete it."
            )
        remove_listed(job.path, job.kept.glob(f"*{LIST}"))
        shutil.rmtree(job.kept)
    return {}


def _record(state: str) -> dict[str, Any]:
    return {"fingerprint": state, "version": VERSION}


def _forget(job: Job, state: str, made: Mapping[int, str], splits: Sequence[str]) -> None:
    """Remove what killed exports have left, and the files of shards that are not what they were made of any more.

    The record and the marks go first, so that nothing counts as done whose files are gone.
    """
    remove_leftovers(temporaries_in(job.kept))
    write_text(job.kept / RECORD, json.dumps(_record(state)))
    if not job.format.is_folder:
        for split in splits or ("",):
            remove_leftovers(temporaries_of(split_path(job.path, split)))
        return
    done = {job.mark(shard).stem for shard, of in made.items() if _read(job.mark(shard)).get("made_of") == of}
    lists = [path for path in job.kept.glob(f"*{LIST}") if path.stem not in done]
    for path in lists:
        path.with_suffix(job.mark(0).suffix).unlink(missing_ok=True)
    remove_listed(job.path, lists)


def _check_files(job: Job, splits: Sequence[str], overwrite: bool) -> None:
    """Raise UsageError where a file to write is a folder, or, without `overwrite`, a file of another kind."""
    for path in (split_path(job.path, split) for split in splits or ("",)):
        if path.is_dir():
            raise UsageError(
                f"{path} is a folder; {job.format.name} is a file. Give {spelled('-o', 'path')} a file's name."
            )
        if path.exists() and not overwrite and not job.format.wrote(path):
            raise UsageError(f"{path} exists and is no earlier export as {job.format.name}. {_otherwise()}")


def _otherwise() -> str:
    return f"Give another {spelled('-o', 'path')}, or {spelled('--overwrite', 'overwrite=True')}."


def _leave(job: Job, record: dict[str, Any], paths: Sequence[Path]) -> None:
    """All is there: forget the steps. A folder remembers what it holds."""
    if job.format.is_folder:
        named = [path.relative_to(job.path).as_posix() for path in paths]
        write_text(job.kept / RECORD, json.dumps({**record, "paths": named}))
        for entry in job.kept.iterdir():
            if entry.name != RECORD and entry.suffix != LIST:
                entry.unlink()
    else:
        shutil.rmtree(job.kept)


def _all_shards(job: Job, results: Results, shards: Sequence[int], workers: int) -> Iterator[tuple[int, Tally]]:
    """(shard, its counts) as they come to an end."""
    if workers == 0:
        writer = job.writer(results)
        yield from ((shard, job.do(results, writer, shard)) for shard in shards)
        return
    context = multiprocessing.get_context("forkserver")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _open, (job,)) as pool:
        try:
            futures = {pool.submit(_do, shard): shard for shard in shards}
            for future in concurrent.futures.as_completed(futures):
                yield futures.pop(future), future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_at_work: tuple[Job, Results, Writer]


def _open(job: Job) -> None:
    """What a process does once."""
    global _at_work
    results = Results.open(Workdir(job.workdir))
    _at_work = job, results, job.writer(results)


def _do(shard: int) -> Tally:
    job, results, writer = _at_work
    return job.do(results, writer, shard)


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        content: dict[str, Any] = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content
