"""Warnings after a trial, each with what to do before the run over the whole list."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ovseg_batch.runs.pipeline import Outcome
from ovseg_batch.runs.planning import PlannedStage
from ovseg_batch.runs.trying.confusions import Confusions, confusions_of
from ovseg_batch.runs.trying.disk import Disk
from ovseg_batch.runs.trying.forecast import Measured
from ovseg_batch.settings import Config
from ovseg_batch.settings.labels import format_labels
from ovseg_batch.types import PromptOutcome
from ovseg_batch.units import counted, size
from ovseg_batch.wording import setting, spelled
from ovseg_batch.workdir.findings import absent_note, common_note, edit_warning, printable
from ovseg_batch.workdir.results import Results, failed_rows
from ovseg_batch.workdir.store import Workdir

COMMON = 0.9  # share of the images from which a label counts as found in nearly every image
COMPETING = 0.2  # share of the pixels of a label in which another one is a close second
ALIKE = 0.95  # cosine of the text embeddings of two labels that CLIP hardly tells apart
FAILED = 0.02  # share of failed images
SLOW = 2.0  # times the median of the computing time of an image
PAIRS = 5  # most pairs of labels with a warning
EMPTY = 0.02  # share of the prompts for which SAM2 drew nothing


@dataclass(frozen=True, slots=True)
class Advice:
    """A warning.

    Attributes:
        kind: one word that programs can read.
        text: what was found.
        action: what to do.
    """

    kind: str
    text: str
    action: str


def advise(
    config: Config,
    workdir: Workdir,
    stages: Sequence[PlannedStage],
    outcome: Outcome,
    measured: Sequence[Measured],
    disk: Disk,
    images: int,
) -> list[Advice]:
    """Return the warnings of a trial.

    Args:
        config: settings of the run over the whole list.
        workdir: of the trial, whose run is finished.
        stages: of the trial.
        outcome: how it ended.
        measured: time and work of its stages.
        disk: bytes that the run would write.
        images: images of the whole list.
    """
    results = Results.open(workdir)
    found = outcome.findings
    advice = []
    if found is not None and found.label_images is not None:
        advice += of_labels(found.images, found.label_images)
        if warning := edit_warning(found.edits):
            advice.append(Advice("edits", warning, "Correct these settings, and try again."))
    confusions = confusions_of(config, {planned.name: planned.job.store for planned in stages}, results.manifest)
    if confusions is not None:
        advice += of_pairs(config, confusions)
    codes = Counter(code for _, _, _, code, _ in failed_rows(results.manifest, results.stores))
    advice += of_failures(codes, results.manifest.rows)
    advice += of_sizes(measured, images)
    outcomes: Counter[PromptOutcome] = Counter()
    for shard in range(results.manifest.shards):
        for points in results.prompts(shard).values():
            outcomes.update(point.outcome for point in points)
    advice += of_prompts(outcomes)
    advice += of_disk(disk)
    return advice


def of_labels(images: int, label_images: Mapping[str, int]) -> list[Advice]:
    """Return warnings about labels that were found in no image, or in nearly every one."""
    advice = []
    if note := absent_note(images, label_images):
        first = next(label for label, count in label_images.items() if not count)
        words = format_labels([(printable(first), [printable(first), "another word for it"])])
        advice.append(
            Advice(
                "absent",
                f"{note}, in {counted(images, 'image')}",
                f"Give synonyms, as in {_labels(words)}, or leave the label out. A rare label needs a larger sample.",
            )
        )
    if len(label_images) > 1 and (note := common_note(images, label_images, COMMON)):
        advice.append(
            Advice(
                "common", note, "If the masks are wrong, add labels for what else is in the images, or a longer word."
            )
        )
    return advice


def of_pairs(config: Config, found: Confusions) -> list[Advice]:
    """Return a warning for every two labels that compete for the same pixels, or have nearly the same words.

    Only the `PAIRS` strongest ones are returned.
    """
    words = {label.name: label.words for label in config.labels}
    advice = []
    pairs = [pair for pair in found.pairs() if pair[2] > COMPETING or pair[3] > ALIKE]
    pairs.sort(key=lambda pair: (pair[2] > COMPETING, pair[2], pair[3]), reverse=True)
    for first, second, share, cosine in pairs[:PAIRS]:
        one, other = printable(first), printable(second)
        reasons = []
        if share > COMPETING:
            reasons.append(f"the other is a close second in {share:.0%} of the pixels of one of them")
        if cosine > ALIKE:
            reasons.append(f"their words are nearly the same to the model (cosine {cosine:.2f})")
        joined = [*map(printable, dict.fromkeys((*words.get(first, (first,)), *words.get(second, (second,)))))]
        rest = [(printable(label.name), [*map(printable, label.synonyms)]) for label in config.labels]
        labels = [(one, joined), *(entry for entry in rest if entry[0] not in (one, other))]
        shown = format_labels(labels if len(labels) <= 10 else [*labels[:1], ("…", [])])
        advice.append(
            Advice(
                "synonyms",
                f"{one} and {other}: {', and '.join(reasons)}",
                f"If they mean the same, make them synonyms: {_labels(shown)}",
            )
        )
    return advice


def _labels(text: str) -> str:
    """Return how the caller gives labels."""
    return spelled(f"--labels {shlex.quote(text)}", f"labels={text!r}")


def of_failures(codes: Mapping[str, int], images: int) -> list[Advice]:
    """Return a warning if more than 2 % of the images failed."""
    failed = sum(codes.values())
    if failed <= FAILED * images:
        return []
    named = ", ".join(f"{count} {code}" for code, count in Counter(codes).most_common())
    return [
        Advice(
            "failures",
            f"{failed} of {counted(images, 'image')} failed: {named}",
            "failures.csv lists them. Correct the cause, or leave the files out with "
            f"{spelled('--exclude', 'manifest.exclude')}.",
        )
    ]


def of_sizes(measured: Sequence[Measured], images: int) -> list[Advice]:
    """Return a warning about images that take more than twice the median time because of their size."""
    if not measured or not all(one.per_image for one in measured):
        return []
    each = np.sum([one.rate * np.array(one.per_image) for one in measured], axis=0)
    slow = each > SLOW * np.median(each)
    if not slow.any():
        return []
    share, of_time = float(slow.mean()), float(each[slow].sum() / each.sum())
    return [
        Advice(
            "sizes",
            f"about {counted(round(share * images), 'image')} ({share:.1%}) take at least twice the usual time because "
            f"of their size, {of_time:.0%} of the whole",
            f"Long pictures have more windows. Limit the longer side, as in {setting('dense.long_side', 1024)}.",
        )
    ]


def of_prompts(outcomes: Mapping[PromptOutcome, int]) -> list[Advice]:
    """Return a warning if SAM2 drew nothing for more than 2 % of the prompts."""
    empty, prompts = outcomes.get(PromptOutcome.EMPTY, 0), sum(outcomes.values())
    if empty <= EMPTY * prompts:
        return []
    return [
        Advice(
            "prompts",
            f"SAM2 drew nothing for {empty} of {counted(prompts, 'prompt')}",
            "Look at the points of these images. Where the label is there, try a larger sam.model; "
            f"{setting('refine.fallback', 'dense')} keeps the outline of the dense map.",
        )
    ]


def of_disk(disk: Disk) -> list[Advice]:
    """Return a warning if the run needs more bytes than are free."""
    if disk.total <= disk.free:
        return []
    largest = max(disk.kinds, key=lambda kind: disk.kinds[kind])
    return [
        Advice(
            "disk",
            f"the run needs about {size(disk.total)}, and {size(disk.free)} are free. "
            f"The largest part is {largest}: {size(disk.kinds[largest])}",
            f"Keep less, as with {setting('dense.cache', 'none')}, free space, or give a folder on another disk.",
        )
    ]
