"""Build the report of a run: numbers, charts, and a gallery of up to a hundred thousand images."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg_batch.errors import UsageError
from ovseg_batch.io.atomic import atomic_path, create_text, remove_leftovers, temporaries_in, write_text
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.marks import REPORT, REPORT_PAGE
from ovseg_batch.io.remote import is_remote, shown
from ovseg_batch.methods.confidence import ImageConfidence
from ovseg_batch.report.page import write_page
from ovseg_batch.report.thumbnails import CLOSED, DATA, KINDS, Album
from ovseg_batch.report.totals import gather, worth_showing
from ovseg_batch.settings import RunConfig
from ovseg_batch.types import Annotation, FinishedImage, ImageRow
from ovseg_batch.wording import spelled
from ovseg_batch.workdir.committed import read_lines
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import FILES, Workdir

LIMIT = 10_000  # images in the gallery by default
CHUNK = 5_000  # entries per file of the index
PAGE = 500  # images per file of details
LISTED = 2_000  # most failures in the gallery
VERSION = 2  # of the folder's layout
MIN_PARALLEL = 500  # images; smaller galleries use one process


@dataclass(frozen=True, slots=True)
class Reported:
    """The path of the page, and the numbers of images."""

    page: Path
    shown: int
    images: int


@dataclass(frozen=True, slots=True)
class Job:
    """The parameters of a process that writes the thumbnails and entries of a shard."""

    workdir: Path
    output: Path
    rows: dict[int, list[int]]  # shard → rows in the gallery
    failures: dict[int, tuple[str, str, str]]
    codes: tuple[str, ...]
    limits: Limits


def build_report(
    workdir: Workdir,
    output: Path,
    limit: int = LIMIT,
    workers: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
    foreword: str = "",
) -> Reported:
    """Write or update the report of the committed shards of a run.

    Args:
        output: an empty folder, or one that holds a report.
        limit: images in the gallery.
        workers: number of worker processes. 0: only this process. None: one per core for large galleries.
        advance: called with the number of finished images.
        foreword: HTML above the gallery.

    Raises:
        UsageError: there is no run, or the folder holds other files.
    """
    results = Results.open(workdir)
    _check_destination(output)
    found = gather(results, min(LISTED, limit))
    wanted = worth_showing(found, limit)
    of_shard: dict[int, list[int]] = {}
    for row in wanted.tolist():
        of_shard.setdefault(results.manifest.shard_of(row), []).append(row)
    _remove_leftovers(output)
    limits = RunConfig()
    job = Job(
        workdir.root,
        output,
        of_shard,
        found.failures,
        tuple(sorted(found.codes)),
        Limits(limits.max_pixels, limits.max_file_bytes),
    )
    if workers is None:
        workers = (os.cpu_count() or 1) if len(wanted) > MIN_PARALLEL else 0
    _write_gallery(output, _entries(job, workers, advance))
    layout = {"entries": len(wanted), "chunks": -(-len(wanted) // CHUNK), "page": PAGE}
    write_page(results, output, found, layout, foreword)
    return Reported(output / REPORT_PAGE, len(wanted), found.images)


def _check_destination(output: Path) -> None:
    """Require an empty folder or one that holds a report.

    Raises:
        UsageError: the folder holds other files.
    """
    if output.exists() and any(output.iterdir()) and not (output / REPORT).is_file():
        raise UsageError(f"{output} is not empty and holds no report. Give another {spelled('-o', 'path')}.")


def _remove_leftovers(output: Path) -> None:
    """Remove the data of the report that is replaced, and files of killed reports."""
    shutil.rmtree(output / DATA, ignore_errors=True)
    remove_leftovers([*temporaries_in(output), *temporaries_in(output / REPORT.parent)])
    write_text(output / REPORT, json.dumps({"version": VERSION}))


# --- the gallery ---


def _entries(job: Job, workers: int, advance: Callable[[int], object]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Write the thumbnails of the gallery. Yield (entry, details) of its images, in manifest order."""
    if workers == 0:
        for shard, rows in job.rows.items():
            yield from _shard(job, shard)
            advance(len(rows))
        return
    context = multiprocessing.get_context("forkserver")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _open, (job,)) as pool:
        for (_, rows), made in zip(job.rows.items(), pool.map(_do, job.rows), strict=True):
            yield from made
            advance(len(rows))


_worker_state: Job


def _open(job: Job) -> None:
    global _worker_state
    _worker_state = job


def _do(shard: int) -> list[tuple[list[Any], list[Any]]]:
    return _shard(_worker_state, shard)


def _shard(job: Job, shard: int) -> list[tuple[list[Any], list[Any]]]:
    results, album = Results.open(Workdir(job.workdir)), Album(job.output)
    committed = results.masks.read_commit(shard) is not None
    images = {image.row.row: image for image in results.shard(shard)} if committed else {}
    edited = _edited_files(results, shard)
    rows = {row.row: row for row in results.manifest.read_shard(shard)}
    wanted = job.rows[shard]
    return [_entry(job, results, album, rows[number], images.get(number), edited.get(number)) for number in wanted]


def _edited_files(results: Results, shard: int) -> dict[int, tuple[Path, str]]:
    """Return row → first output file of the edit stage, and the digest of its content."""
    store = results.edits
    commit = None if store is None else store.read_commit(shard)
    if store is None or commit is None:
        return {}
    digests = {file.path: file.blake2b for file in commit.files}
    lines = read_lines(store, shard, ["row", "status", "files"])
    named = {line["row"]: line["files"][0] for line in lines if line["status"] == "ok" and line["files"]}
    return {row: (store.files / name, digests[f"{FILES}/{name}"]) for row, name in named.items()}


def _entry(
    job: Job,
    results: Results,
    album: Album,
    row: ImageRow,
    image: FinishedImage[Annotation] | None,
    edited: tuple[Path, str] | None,
) -> tuple[list[Any], list[Any]]:
    """Return the gallery entry of an image, in the order that report.js reads, and its details."""
    if image is not None:
        row = image.row
    _, code, message = job.failures.get(row.row, ("", "", ""))
    photo, layer = "", ""
    if not is_remote(row.path) and code not in CLOSED:
        photo = album.add_image(row, job.limits)
    masks: list[list[Any]] = []
    sure = ImageConfidence.from_masks(())
    if image is not None:
        if image.annotations:
            layer = album.add_layer(image, results.labels)
        size = image.height * image.width
        for one in sorted(image.annotations, key=lambda one: one.confidence):
            label = results.labels.index(one.category)
            masks.append([label, round(one.confidence, 3), round(one.area / size, 6), one.source])
        sure = ImageConfidence.from_masks(mask.confidence for mask in image.annotations)
    after = "" if edited is None else album.add_edited(row.row, *edited)
    place = shown(row.path) if is_remote(row.path) else Path(row.path).absolute().as_uri()
    labels = sorted({mask[0] for mask in masks})
    number = job.codes.index(code) if code else -1
    numbers = [round(1000 * sure.least), round(1000 * sure.doubt), sure.unsure, len(masks)]
    return [row.row, row.file_name, *numbers, labels, number, photo, layer, after], [place, message, masks]


def _write_gallery(output: Path, entries: Iterable[tuple[list[Any], list[Any]]]) -> None:
    """Write the index in files of `CHUNK` entries, and the details in files of `PAGE` images."""
    index, details = list[Any](), list[Any]()
    album, kept, count = Album(output), set[Path](), 0
    for count, (entry, more) in enumerate(entries, start=1):
        tokens = zip(KINDS, entry[-len(KINDS) :], strict=True)
        kept.update(album.path(kind, entry[0], token) for kind, token in tokens if token)
        index.append(entry)
        details.append(more)
        if count % CHUNK == 0:
            _write_script(output / f"{DATA}/index-{count // CHUNK - 1:05d}.js", f"OVSEG.add({_json(index)})")
            index.clear()
        if count % PAGE == 0:
            _write_details(output, count // PAGE - 1, details)
            details.clear()
    if index:
        _write_script(output / f"{DATA}/index-{count // CHUNK:05d}.js", f"OVSEG.add({_json(index)})")
    if details:
        _write_details(output, count // PAGE, details)
    album.remove_others(kept)


def _write_details(output: Path, number: int, details: Sequence[Any]) -> None:
    _write_script(output / f"{DATA}/details-{number:05d}.js", f"OVSEG.details({number},{_json(details)})")


def _write_script(path: Path, text: str) -> None:
    with atomic_path(path) as temporary, create_text(temporary) as file:
        file.write(text + ";\n")


def _json(value: Any) -> str:
    """Return JSON that is safe in any part of a script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
