"""Export a run shard by shard, in bounded memory. An interrupted export continues.

The output of a shard is written first and its mark last. The mark holds a digest of the shard's content. A shard whose
mark has the current digest is skipped. Formats that are folders write final files and lists of them, so that a later
export can remove outdated files. Formats that are single files write a part per shard beside the file, and join the
parts at the end.
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

VERSION = 2  # of the output; exports of other versions are not continued
PARTS, RECORD = EXPORT.parts  # in an exported folder: its parts, and the record of the export
MIN_PARALLEL = 2_000  # images; smaller exports use one process

Tally = Counter[str]


@dataclass(frozen=True, slots=True)
class Options:
    """Options of single formats.

    Attributes:
        images: how image files are added to formats that need them: as symbolic links, as copies, or not at all.
        palette: colours of the classes in semantic PNGs: `none` (grey levels) or VOC's.
        ignore_below: in semantic PNGs, pixels of masks with a lower confidence are 255.
        thresholds: label → value of `ignore_below` for that label.
        stuff: labels whose masks form one segment per image in panoptic files, beside those of `kind: stuff`.
        tolerance: largest distance in pixels of polygons to the outline; 0 is exact.
        image_url: URL prefix of the images in Label Studio.
    """

    images: Literal["link", "copy", "none"] = "link"
    palette: Literal["none", "voc"] = "none"
    ignore_below: float = 0.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    stuff: tuple[str, ...] = ()
    tolerance: float = 0.0
    image_url: str = "/data/local-files/?d="

    def check(self, labels: Sequence[str]) -> None:
        """Raise UsageError if an option names a label that the run does not have."""
        for label in (*self.stuff, *self.thresholds):
            if label not in labels:
                raise UsageError(f"The run has no label {label!r}.{nearest(label, labels)}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a writer. `labels` are the exported classes in order, `ids` their indices in the run."""

    labels: tuple[str, ...]
    ids: Mapping[str, int]
    has_background: bool
    splits: tuple[str, ...]
    options: Options
    path: Path
    parts: Parts
    info: Mapping[str, object]

    def files(self, owner: int | str) -> ShardFiles:
        """Return the files of a shard, or of the whole export, in the folder `path`."""
        return ShardFiles(self.path, self.parts, owner)


class Writer(Protocol):
    """Writes one format."""

    def __init__(self, plan: Plan) -> None: ...

    def shard(self, shard: int, images: Iterable[ChosenImage]) -> Tally:
        """Write the output of a shard, and replace that of an interrupted attempt. The caller sums the counts."""
        ...

    def finish(self, shards: Sequence[int]) -> list[Path]:
        """Write the files that depend on all shards. Return the files or folders to report to the user."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """An export format.

    Attributes:
        name: value of `-f`.
        make: class of the writer.
        head: first characters of every written file. Empty: the format is a folder.
        naming: maps the file name of an image to the name of its output.
    """

    name: str
    make: type[Writer]
    head: str
    naming: Naming = stem_of

    @property
    def is_folder(self) -> bool:
        return not self.head

    def wrote(self, path: Path) -> bool:
        """Return whether a file begins like those of this format."""
        head = self.head.encode()
        with path.open("rb") as file:
            return file.read(len(head)) == head


@dataclass(frozen=True, slots=True)
class Exported:
    """The counts of an export, and the numbers of exported and of all shards."""

    paths: list[Path]
    tally: Tally
    shards: int
    of_shards: int

    @property
    def complete(self) -> bool:
        return self.shards == self.of_shards


@dataclass(frozen=True, slots=True)
class Job:
    """The parameters of an export, which other processes receive."""

    workdir: Path
    format: Format
    path: Path
    selection: Selection
    options: Options
    shared: frozenset[int]

    @property
    def kept(self) -> Path:
        """The folder of the marks and parts."""
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
        """Return the mark of a shard, a file with the digest of its content."""
        return self.kept / f"{shard:06d}.json"

    def chooser(self, results: Results) -> Chooser:
        return Chooser(results, self.selection, self.shared, self.format.naming)

    def made_of(self, results: Results, commit: Commit) -> str:
        """Return a digest of a shard's content. It changes with masks, rows, names, splits or ids."""
        digest, manifest = hashlib.blake2b(commit.digest.encode(), digest_size=16), results.manifest
        chooser = self.chooser(results)
        for row in manifest.read_shard(commit.shard):
            known = (row.key, row.path, row.bytes, row.mtime_ns, manifest.image_id(row))
            digest.update(repr((*known, chooser.name(row), chooser.split(row))).encode())
        return digest.hexdigest()

    def do(self, results: Results, writer: Writer, shard: int) -> Tally:
        """Export a committed shard, unless its mark is current. Return its counts."""
        commit = results.masks.read_commit(shard)
        if commit is None:
            raise OvsegError(
                f"Shard {shard} of {self.workdir} lost its commit during the export. Run the command again."
            )
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
    """Export the committed shards of a run to `path`.

    Args:
        path: a new file, or an export of this format, which is replaced; or an empty folder, or one that holds the same
            export, which is continued.
        overwrite: replace any file, and any folder that holds an export.
        workers: number of worker processes. 0: only this process. None: one per core for large runs.
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
    state |= {"selection": selection.to_record(), "options": asdict(options)}
    made = {commit.shard: job.made_of(results, commit) for commit in commits}
    shards, made_of = list(made), hashlib.blake2b("".join(made.values()).encode(), digest_size=16).hexdigest()
    splits = selection.splits(results.manifest)
    known = _check_destination(job, fingerprint(state), splits, overwrite)
    if known.get("made_of") == made_of:
        advance(sum(commit.rows for commit in commits))
        return Exported([path / name for name in known["paths"]], Tally(known["tally"]), len(shards), len(shards))
    _remove_outdated(job, fingerprint(state), made, splits)
    tally = _tallied(job, results, {commit.shard: commit.rows for commit in commits}, workers, advance)
    with failpoints.within("export"):
        paths = job.writer(results).finish(shards)
    if len(shards) == results.manifest.shards:
        _remove_intermediate(job, {**_record(fingerprint(state)), "made_of": made_of, "tally": tally}, paths)
    return Exported(paths, tally, len(shards), results.manifest.shards)


def _tallied(
    job: Job, results: Results, rows: Mapping[int, int], workers: int | None, advance: Callable[[int], object]
) -> Tally:
    """Export all shards, and return the sum of their numbers. `rows` are the manifest rows of each shard."""
    tally = Tally()
    if workers is None:
        workers = (os.cpu_count() or 1) if sum(rows.values()) > MIN_PARALLEL else 0
    for shard, counted in _all_shards(job, results, list(rows), workers):
        tally += counted
        advance(rows[shard])
    return tally


def _check_destination(job: Job, state: str, splits: Sequence[str], overwrite: bool) -> dict[str, Any]:
    """Require an empty destination, or one that holds this same export. Return the record of that export.

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
                f"{job.path} is not empty and holds no export. Give another {spelled('-o', 'path')}, or delete it."
            )
        if not overwrite:
            raise UsageError(f"{job.path} holds an export with other settings or of another run. {_alternatives()}")
        if known.get("version") != VERSION:
            raise UsageError(
                f"{job.path} holds an export of another version of ovseg-batch, which did not list its files. "
                f"Give another {spelled('-o', 'path')}, or delete it."
            )
        remove_listed(job.path, job.kept.glob(f"*{LIST}"))
        shutil.rmtree(job.kept)
    return {}


def _record(state: str) -> dict[str, Any]:
    return {"fingerprint": state, "version": VERSION}


def _remove_outdated(job: Job, state: str, made: Mapping[int, str], splits: Sequence[str]) -> None:
    """Remove files of killed exports, and the files of shards that have changed.

    The record and the marks are removed first, so that no shard counts as done whose files are missing.
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
            raise UsageError(f"{path} exists and is not an earlier export as {job.format.name}. {_alternatives()}")


def _alternatives() -> str:
    return f"Give another {spelled('-o', 'path')}, or {spelled('--overwrite', 'overwrite=True')}."


def _remove_intermediate(job: Job, record: dict[str, Any], paths: Sequence[Path]) -> None:
    """Remove the marks and parts of a finished export. Folders keep a record of their content."""
    if job.format.is_folder:
        named = [path.relative_to(job.path).as_posix() for path in paths]
        write_text(job.kept / RECORD, json.dumps({**record, "paths": named}))
        for entry in job.kept.iterdir():
            if entry.name != RECORD and entry.suffix != LIST:
                entry.unlink()
    else:
        shutil.rmtree(job.kept)


def _all_shards(job: Job, results: Results, shards: Sequence[int], workers: int) -> Iterator[tuple[int, Tally]]:
    """Yield each finished shard and its counts."""
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


_worker_state: tuple[Job, Results, Writer]


def _open(job: Job) -> None:
    """Initialise a worker process."""
    global _worker_state
    results = Results.open(Workdir(job.workdir))
    _worker_state = job, results, job.writer(results)


def _do(shard: int) -> Tally:
    job, results, writer = _worker_state
    return job.do(results, writer, shard)


def _read(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Return an empty one if there is none."""
    try:
        content: dict[str, Any] = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content
