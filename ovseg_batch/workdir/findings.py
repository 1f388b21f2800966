"""Notes on a finished run: labels that are in no image or in nearly every one, and edits that changed nothing.

The counts come from the pass that writes the outputs, and the record that seals the outputs keeps them. Reading them
takes one small file, whatever the number of images.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ovseg_batch.settings.edit_modes import EDIT_MODES, EditMode
from ovseg_batch.workdir.store import Workdir

LISTED = 10  # labels that a note names
SHOWN = 60  # characters that a note shows of a label
COMMON_IMAGES = 20  # fewer images say nothing about how common a label is
COMMON_SHARE = 0.95  # of the images, from which a label is found in nearly every image
MOSTLY = 0.5  # of the edited images: a larger share of unchanged ones is worth a warning
JOINERS = "\u200c\u200d"  # invisible, but part of Persian words and of emoji


@dataclass(frozen=True, slots=True)
class EditCounts:
    """How many images were edited, and on how many the edit has no effect.

    Attributes:
        mode: `edit.mode` of the run.
        images: images that have an edited file.
        no_mask: edited images that have no mask of the chosen labels: copies, blank masks, or fillings alone.
        whole_image: images that the kept masks, or the frame of a crop, cover completely.
        skipped: images without a mask of the chosen labels that have no edited file (`edit.on_empty: skip`).
    """

    mode: str
    images: int
    no_mask: int
    whole_image: int
    skipped: int = 0

    @property
    def unchanged(self) -> int:
        return self.no_mask + self.whole_image

    @property
    def total(self) -> int:
        return self.images + self.skipped


@dataclass(frozen=True, slots=True)
class Findings:
    """The counts of a finished run.

    Attributes:
        images: finished images.
        label_images: images that have a mask of each label. None: the record is older than these counts.
        edits: None where nothing was edited, or where the record is older.
    """

    images: int
    label_images: dict[str, int] | None = None
    edits: EditCounts | None = None

    @classmethod
    def from_record(cls, counts: Mapping[str, Any]) -> Findings:
        """Return the findings among the counts of a sealed record. A missing count is None."""
        edits = counts.get("edits")
        return cls(counts["images"], counts.get("label_images"), None if edits is None else EditCounts(**edits))

    def to_record(self) -> dict[str, Any]:
        """Return the findings as plain values, for JSON."""
        return asdict(self)


def read_findings(workdir: Workdir) -> Findings | None:
    """Return the findings of the latest run of a workdir; None while its outputs are not written.

    Raises:
        UsageError: there is no run in that folder.
    """
    made_of, sealed = workdir.made_of(), workdir.sealed_outputs()
    if sealed is None or sealed.get("made_of") != made_of:
        return None
    return Findings.from_record(sealed["counts"])


def embedded_note(settings: Sequence[str]) -> str | None:
    """Return what masks of the package's own small models are worth; None where no setting names one."""
    if not settings:
        return None
    return (
        f"{' and '.join(settings)}: embedded demo weights, trained on rendered scenes only. "
        "Their results on photographs mean nothing. `ovseg-batch models list` names models for photographs."
    )


def found_note(label_images: Mapping[str, int] | None) -> str | None:
    """Return how many images have a mask of each label, the most frequent labels first; None where none has."""
    found = sorted(((count, label) for label, count in (label_images or {}).items() if count), key=lambda x: -x[0])
    if not found:
        return None
    named = ", ".join(f"{printable(label)} {count:,}" for count, label in found[:LISTED])
    more = f" and {len(found) - LISTED:,} more labels" if len(found) > LISTED else ""
    return f"images with a mask: {named}{more}"


def label_notes(images: int, label_images: Mapping[str, int] | None, among: Collection[str] | None = None) -> list[str]:
    """Return a sentence on the labels that no image has, and one on those that nearly every image has.

    Args:
        images: finished images.
        label_images: images that have a mask of each label. None: unknown, then there is no sentence.
        among: labels to speak of. None: all.
    """
    if not images or label_images is None:
        return []
    chosen = {label: count for label, count in label_images.items() if among is None or label in among}
    notes = []
    if absent := [label for label, count in chosen.items() if count == 0]:
        notes.append(f"never found: {name_labels(absent)}")
    common = {label: count for label, count in chosen.items() if count >= COMMON_SHARE * images}
    if common and images >= COMMON_IMAGES and len(label_images) > 1:
        share = math.floor(100 * min(common.values()) / images)  # 100 % means every image
        least = "at least " if len(set(common.values())) > 1 else ""
        notes.append(
            f"found in {least}{share} % of the images: {name_labels(list(common))}. "
            "Check the masks: such a word can catch everything that no other label describes."
        )
    return notes


def edit_note(edits: EditCounts | None) -> str | None:
    """Return on how many images the edit has no effect, and why; None where it has one on all."""
    if edits is None:
        return None
    causes = (
        (edits.no_mask, "without a mask of the chosen labels"),
        (edits.whole_image, "that the masks cover completely"),
    )
    notes = []
    if edits.skipped:
        without = f"{edits.skipped:,} of {edits.total:,} images without an edited file"
        notes.append(f"{without}: no mask of the chosen labels")
    if edits.unchanged:
        state = EDIT_MODES.get(edits.mode, EditMode()).unchanged
        named = ", ".join(f"{count:,} {what}" for count, what in causes if count)
        notes.append(f"{edits.unchanged:,} of {edits.images:,} {state}: {named}")
    return "; ".join(notes) or None


def edit_warning(edits: EditCounts | None) -> str | None:
    """Return what to check where the edit has no effect on more than half of the images; else None."""
    if edits is None or edits.unchanged + edits.skipped <= MOSTLY * edits.total:
        return None
    no_mask = edits.no_mask + edits.skipped
    if no_mask == edits.total:
        cause = "No image has a mask of the chosen labels."
    elif no_mask >= edits.whole_image:
        cause = "Most of these images have no mask of the chosen labels."
    else:
        cause = "The masks cover whole images."
    states = {
        "have no edited file": edits.skipped,
        EDIT_MODES.get(edits.mode, EditMode()).is_unchanged: edits.unchanged,
    }
    named = " or ".join(state for state, count in states.items() if count)
    return (
        f"{edits.unchanged + edits.skipped:,} of {edits.total:,} images {named}. {cause} "
        "Check the labels, edit.min_score and edit.on_empty, and look at the images in the report."
    )


def name_labels(labels: Sequence[str]) -> str:
    """Return labels as one line of text: `a, b, c and 48 more`."""
    named = ", ".join(printable(label) for label in labels[:LISTED])
    return f"{named} and {len(labels) - LISTED:,} more" if len(labels) > LISTED else named


def printable(label: str) -> str:
    """Return a label without characters that control a terminal or reorder text; a long one is cut."""
    cut = label if len(label) <= SHOWN else f"{label[: SHOWN - 1]}…"
    return "".join(c.encode("unicode_escape").decode() if _controls(c) else c for c in cut)


def _controls(character: str) -> bool:
    category = unicodedata.category(character)
    return (category[0] == "C" and character not in JOINERS) or category in ("Zl", "Zp")
