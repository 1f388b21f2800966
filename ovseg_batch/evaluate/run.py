"""Evaluate a finished run against the ground truth of a data set."""

from __future__ import annotations

import functools
from pathlib import Path

from ovseg_batch.datasets import Dataset
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.score import Score, paint, score_shards
from ovseg_batch.evaluate.sheet import Case, write_sheet
from ovseg_batch.evaluate.truth import TruthReader
from ovseg_batch.io.images import read_image
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.settings import RunConfig
from ovseg_batch.stages.base import read_limits
from ovseg_batch.workdir.progress import status
from ovseg_batch.workdir.results import Results, finished_images
from ovseg_batch.workdir.store import StageStore, Workdir, fingerprint

SCORE_VERSION = 4  # increases when the counts change
SHEET_IMAGES = 12  # images of a sheet


def evaluate(workdir: Workdir, dataset: Dataset, root: Path, sheet: Path | None = None) -> Score:
    """Evaluate a finished run. Every shard is scored only once.

    Args:
        root: the folder of the data set, or a folder above it.
        sheet: PNG of the images with the lowest scores to write. None: not written.

    Raises:
        UsageError: there is no run, it is not finished, it has other classes, or images have no ground truth.
    """
    state = status(workdir)
    if not state["complete"]:
        raise UsageError(f"The run in {workdir.root} is not finished; give its command again first.")
    results = Results.open(workdir)
    manifest, store = results.manifest, results.masks
    reader = TruthReader(dataset, root)
    make = functools.partial(Score, dataset, reader, results.labels)
    run = store.folder.name
    name = fingerprint({"version": SCORE_VERSION, "run": run, "dataset": repr(dataset), "root": str(root)})
    folder = store.folder / "eval" / f"{dataset.name}-{name[:8]}"
    score = score_shards(
        make, ((shard, finished_images(manifest, store, [shard])) for shard in range(manifest.shards)), folder
    )
    if sheet is not None:
        write_sheet(sheet, _cases(score, dataset, reader, manifest, store))
    return score


def vocabulary_of(workdir: Workdir) -> str:
    """Return `oracle` if the images of a run have separate lists of labels, otherwise `open`."""
    manifest = Manifest.open(workdir.manifest)
    own = any(row.extra.get("prompts") for shard in range(manifest.shards) for row in manifest.read_shard(shard))
    return "oracle" if own else "open"


def _cases(score: Score, dataset: Dataset, reader: TruthReader, manifest: Manifest, store: StageStore) -> list[Case]:
    """Return the images with the lowest scores as rows of a sheet."""
    worst, limits = score.worst(SHEET_IMAGES), read_limits(RunConfig())
    found: dict[int, Case] = {}
    for shard in range(manifest.shards):
        rows = [row for row in manifest.read_shard(shard) if row.row in worst]
        images = {one.row.row: one for one in finished_images(manifest, store, [shard])} if rows else {}
        for row in rows:
            name, image = row.file_name, images[row.row]
            truth = reader.read(name).classes
            if truth is not None:
                caption = f"{name}: mean IoU {score.quality(row.row):.3f}"
                found[row.row] = Case(read_image(row.path, limits), truth, paint(image, dataset), caption)
    return [found[row] for row in worst if row in found]
