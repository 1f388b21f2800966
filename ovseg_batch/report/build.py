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
from ovseg_batch.report.dense_view import DenseView
from ovseg_batch.report.entries import Job, Pair, shard_entries
from ovseg_batch.report.page import write_page
from ovseg_batch.report.thumbnails import DATA, Album
from ovseg_batch.report.totals import Gathered, gather, worth_showing
from ovseg_batch.settings import RunConfig
from ovseg_batch.wording import spelled
from ovseg_batch.workdir.decisions import Decisions
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

LIMIT = 10_000  # images in the gallery by default
FIRST, CHUNK = 200, 5_000  # entries in the first file of the index, and in the others
PAGE = 10  # images per file of details
DENSE_IMAGES = 2_000  # most images whose dense map is shown
LISTED = 2_000  # most failures in the gallery
VERSION = 2  # of the folder's layout
MIN_PARALLEL = 500  # images; smaller galleries use one process


@dataclass(frozen=True, slots=True)
class Reported:
    """The path of the page, and the numbers of images."""

    page: Path
    shown: int
    images: int


def build_report(
    workdir: Workdir,
    output: Path,
    limit: int = LIMIT,
    workers: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
    foreword: str = "",
    portable: bool = False,
    decisions: Decisions | None = None,
) -> Reported:
    """Write or update the report of the committed shards of a run.

    Args:
        output: an empty folder, or one that holds a report.
        limit: images in the gallery.
        workers: number of worker processes. 0: only this process. None: one per core for large galleries.
        advance: called with the number of finished images.
        foreword: HTML above the gallery.
        portable: write a rendition of every image, so that the folder can be copied to another machine.
        decisions: decisions that the page begins with.

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
    job = _job(results, output, found, of_shard, portable)
    if workers is None:
        workers = (os.cpu_count() or 1) if len(wanted) > MIN_PARALLEL else 0
    chunks = _write_gallery(output, _entries(job, workers, advance))
    if decisions is not None:
        _write_script(output / DATA / "decisions.js", f"OVSEG.begin({_json(decisions.to_record())})")
    layout = {"entries": len(wanted), "chunks": chunks, "page": PAGE, "dense": DENSE_IMAGES}
    layout["decisions"] = decisions is not None
    write_page(results, output, found, layout, job.dense, foreword)
    return Reported(output / REPORT_PAGE, len(wanted), found.images)


def _job(results: Results, output: Path, found: Gathered, rows: dict[int, list[int]], portable: bool) -> Job:
    limits = RunConfig()
    return Job(
        workdir=results.workdir.root,
        output=output,
        rows=rows,
        failures=found.failures,
        codes=tuple(sorted(found.codes)),
        limits=Limits(limits.max_pixels, limits.max_file_bytes),
        dense=DenseView.open(results),
        dense_rows=frozenset(worth_showing(found, DENSE_IMAGES).tolist()),
        portable=portable,
    )


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


def _entries(job: Job, workers: int, advance: Callable[[int], object]) -> Iterator[Pair]:
    """Write the thumbnails of the gallery. Yield (entry, details) of its images, in manifest order."""
    if workers == 0:
        for shard, rows in job.rows.items():
            yield from shard_entries(job, shard)
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


def _do(shard: int) -> list[Pair]:
    return shard_entries(_worker_state, shard)


def _write_gallery(output: Path, entries: Iterable[Pair]) -> int:
    """Write the index and the details of the gallery. Return the number of files of the index.

    The first file of the index is short, so that the first pictures appear at once.
    """
    index, details = list[Any](), list[Any]()
    album, kept, count, chunks = Album(output), set[Path](), 0, 0
    for count, (entry, more) in enumerate(entries, start=1):
        kept.update(album.paths(entry, more))
        index.append(entry)
        details.append(more)
        if len(index) == (CHUNK if chunks else FIRST):
            _write_index(output, chunks, index)
            chunks += 1
            index.clear()
        if count % PAGE == 0:
            _write_details(output, count // PAGE - 1, details)
            details.clear()
    if index:
        _write_index(output, chunks, index)
        chunks += 1
    if details:
        _write_details(output, count // PAGE, details)
    album.remove_others(kept)
    return chunks


def _write_index(output: Path, number: int, index: Sequence[Any]) -> None:
    _write_script(output / f"{DATA}/index-{number:05d}.js", f"OVSEG.add({_json(index)})")


def _write_details(output: Path, number: int, details: Sequence[Any]) -> None:
    _write_script(output / f"{DATA}/details-{number:05d}.js", f"OVSEG.details({number},{_json(details)})")


def _write_script(path: Path, text: str) -> None:
    with atomic_path(path) as temporary, create_text(temporary) as file:
        file.write(text + ";\n")


def _json(value: Any) -> str:
    """Return JSON that is safe in any part of a script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
