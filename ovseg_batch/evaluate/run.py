"""Evaluate a finished run against the ground truth of a data set, or one of one's own."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from ovseg_batch.datasets import Dataset
from ovseg_batch.errors import UsageError
from ovseg_batch.evaluate.kept_scores import KeptScores
from ovseg_batch.evaluate.score import Score, paint
from ovseg_batch.evaluate.sheet import Case, write_sheet
from ovseg_batch.evaluate.truth.datasets import TruthReader, TruthSource
from ovseg_batch.evaluate.truth.own import open_truth
from ovseg_batch.io.images import read_image
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.settings import RunConfig
from ovseg_batch.stages.base import read_limits
from ovseg_batch.units import counted
from ovseg_batch.workdir.progress import status
from ovseg_batch.workdir.results import Results, finished_images
from ovseg_batch.workdir.store import StageStore, Workdir, fingerprint

log = logging.getLogger(__name__)

SCORE_VERSION = 6  # increases when the counts change
SHEET_IMAGES = 12  # images of a sheet
SKIPPED_SHOWN = 5  # images without a score that are named in the log


def evaluate(workdir: Workdir, dataset: Dataset, root: Path, sheet: Path | None = None) -> Score:
    """Evaluate a finished run. A shard is scored again only when its images, its masks or their ground truth change.

    Args:
        root: the folder of the data set, or a folder above it.
        sheet: PNG of the images with the lowest scores to write. None: not written.

    Raises:
        UsageError: there is no run, it is not finished, it has other classes, or images have no ground truth.
    """
    results, reader = _finished(workdir), TruthReader(dataset, root)
    score = score_run(results, dataset, reader, str(root))
    _report_skipped(score)
    if sheet is not None:
        write_sheet(sheet, _cases(score, dataset, reader, results.manifest, results.masks))
    return score


def evaluate_truth(workdir: Workdir, truth: Path, classes: Path | None = None, sheet: Path | None = None) -> Score:
    """Evaluate a finished run against a ground truth of one's own. Images without a truth are left out.

    Args:
        truth: COCO file of instances or of panoptic segments, or a folder of class maps.
        classes: list of the classes of a folder of maps. None: `classes.txt` or `classes.json` in it.
        sheet: as in `evaluate`.

    Raises:
        UsageError: there is no run, it is not finished, or the truth is wrong or has no image or label of the run.
    """
    results = _finished(workdir)
    own = open_truth(truth, results, classes)
    score = score_run(results, own.dataset, own, str(truth.absolute()))
    score.without_truth = own.matched.images - len(own.matched.places)
    for note in own.notes:
        log.warning("%s", note)
    _report_skipped(score)
    if not score.images:
        raise UsageError(
            f"No image can be scored: {counted(len(own.matched.places), 'image')} of the run are in the truth {truth}, "
            "but none of them was finished and has the size of its truth."
        )
    if sheet is not None:
        write_sheet(sheet, _cases(score, own.dataset, own, results.manifest, results.masks))
    return score


def _finished(workdir: Workdir) -> Results:
    if not status(workdir)["complete"]:
        raise UsageError(f"The run in {workdir.root} is not finished; give its command again first.")
    return Results.open(workdir)


def _report_skipped(score: Score) -> None:
    for reason in score.skipped[:SKIPPED_SHOWN]:
        log.warning("%s The image is left out of the figures.", reason)
    if len(score.skipped) > SKIPPED_SHOWN:
        log.warning("%s are left out of the figures in all.", counted(len(score.skipped), "image"))


def scores_folder(results: Results) -> Path:
    """Return the folder that holds a folder of kept scores for each data set and root."""
    return results.masks.folder / "eval"


def _name(results: Results, dataset: Dataset, place: str) -> str:
    run = results.masks.folder.name
    made_of = {"version": SCORE_VERSION, "run": run, "dataset": repr(dataset), "root": place}
    return f"{dataset.name}-{fingerprint(made_of)[:8]}"


def score_run(
    results: Results, dataset: Dataset, reader: TruthSource, place: str, shards: Iterable[int] | None = None
) -> Score:
    """Sum the scores of shards. Kept scores are read where they count, others are computed and kept.

    Args:
        place: folder or file of the truth, which names the kept scores.
        shards: shards to score. None: all.
    """
    folder = scores_folder(results) / _name(results, dataset, place)
    total, kept = Score(dataset, reader, results.labels), KeptScores(folder)
    for shard in range(results.manifest.shards) if shards is None else shards:
        masks = results.state_of(shard)
        names = [row.file_name for row in results.manifest.read_shard(shard)]
        truth = reader.digest(names)
        arrays = kept.read(shard, masks, truth)
        if arrays is None:
            part = Score(dataset, reader, results.labels)
            for image in results.shard(shard) if any(map(reader.has, names)) else ():
                if reader.has(image.row.file_name):
                    part.add(image)
            arrays = part.arrays()
            kept.write(shard, masks, truth, arrays)
        total.merge(arrays)
    return total


def vocabulary_of(workdir: Workdir) -> str:
    """Return `oracle` if the images of a run have separate lists of labels, otherwise `open`."""
    manifest = Manifest.open(workdir.manifest)
    own = any(row.extra.get("prompts") for shard in range(manifest.shards) for row in manifest.read_shard(shard))
    return "oracle" if own else "open"


def _cases(score: Score, dataset: Dataset, reader: TruthSource, manifest: Manifest, store: StageStore) -> list[Case]:
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
