"""Notes on a finished run: labels found in no image or in nearly every image, and edits without an effect.

The counts are computed while the outputs are written, and stored in the record of the outputs. Reading them takes one
small file, independent of the number of images.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ovseg_batch.settings.edit_modes import EDIT_MODES, EditMode
from ovseg_batch.workdir.store import Workdir

LISTED = 10  # labels that a note names at most
SHOWN = 60  # characters of a label that a note shows at most
COMMON_IMAGES = 20  # the share of a label is not judged with fewer images
COMMON_SHARE = 0.95  # share of the images from which a label counts as found in nearly every image
MOSTLY = 0.5  # share of unchanged edited images above which there is a warning
JOINERS = "\u200c\u200d"  # invisible, but part of Persian words and of emoji


@dataclass(frozen=True, slots=True)
class EditCounts:
    """Numbers of edited images, and of images on which the edit has no effect.

    Attributes:
        mode: `edit.mode` of the run.
        images: images that have an edited file.
        no_mask: edited images without a mask of the chosen labels: copies, blank masks, or only fillings.
        whole_image: images that the masks, or the frame of a crop, cover completely.
        skipped: images without a mask of the chosen labels and without an edited file (`edit.on_empty: skip`).
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
        label_images: label → number of images with a mask of it. None: the record is older than these counts.
        edits: None without edits, or for older records.
    """

    images: int
    label_images: dict[str, int] | None = None
    edits: EditCounts | None = None

    @classmethod
    def from_record(cls, counts: Mapping[str, Any]) -> Findings:
        """Return the findings in a sealed record. A missing count is None."""
        edits = counts.get("edits")
        return cls(counts["images"], counts.get("label_images"), None if edits is None else EditCounts(**edits))

    def to_record(self) -> dict[str, Any]:
        """Return the findings as plain values, for JSON."""
        return asdict(self)


def read_findings(workdir: Workdir) -> Findings | None:
    """Return the findings of the latest run of a workdir, or None while its outputs are not written.

    Raises:
        UsageError: there is no run in that folder.
    """
    made_of, sealed = workdir.made_of(), workdir.sealed_outputs()
    if sealed is None or sealed.get("made_of") != made_of:
        return None
    return Findings.from_record(sealed["counts"])


def embedded_note(settings: Sequence[str]) -> str | None:
    """Return a note on the validity of the package's small models, or None if no setting names one."""
    if not settings:
        return None
    return (
        f"{' and '.join(settings)}: embedded demo weights, trained on rendered scenes only. "
        "Their results on photographs mean nothing. `ovseg-batch models list` names models for photographs."
    )


def found_note(label_images: Mapping[str, int] | None) -> str | None:
    """Return a note on the number of images per label, the most frequent labels first, or None without masks."""
    found = sorted(((count, label) for label, count in (label_images or {}).items() if count), key=lambda x: -x[0])
    if not found:
        return None
    named = ", ".join(f"{printable(label)} {count:,}" for count, label in found[:LISTED])
    more = f" and {len(found) - LISTED:,} more labels" if len(found) > LISTED else ""
    return f"images with a mask: {named}{more}"


def label_notes(images: int, label_images: Mapping[str, int] | None, among: Collection[str] | None = None) -> list[str]:
    """Return a sentence on labels that no image has, and one on labels that nearly every image has.

    Args:
        images: finished images.
        label_images: label → number of images with a mask of it. None: unknown, which returns no sentence.
        among: labels to report. None: all.
    """
    if not images or label_images is None:
        return []
    chosen = {label: count for label, count in label_images.items() if among is None or label in among}
    several = len(label_images) > 1
    notes = (absent_note(images, chosen), common_note(images, chosen) if several else None)
    return [note for note in notes if note is not None]


def absent_note(images: int, label_images: Mapping[str, int]) -> str | None:
    """Return a sentence on the labels that no image has, or None if there are none."""
    absent = [label for label, count in label_images.items() if count == 0]
    return f"never found: {name_labels(absent)}" if absent and images else None


def common_note(images: int, label_images: Mapping[str, int], least: float | None = None) -> str | None:
    """Return a sentence on the labels that nearly every image has, or None if there are none or few images.

    Args:
        least: share of the images from which a label counts, in [0, 1]. None: `COMMON_SHARE`.
    """
    least = COMMON_SHARE if least is None else least
    common = {label: count for label, count in label_images.items() if count >= least * images}
    if not common or images < COMMON_IMAGES:
        return None
    share = math.floor(100 * min(common.values()) / images)  # 100 % means every image
    at_least = "at least " if len(set(common.values())) > 1 else ""
    return (
        f"found in {at_least}{share} % of the images: {name_labels(list(common))}. "
        "Check the masks: such a word can catch everything that no other label describes."
    )


def edit_note(edits: EditCounts | None) -> str | None:
    """Return a note on images without an effect of the edit, with the reasons, or None if there are none."""
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
    """Return a warning if the edit has no effect on more than half of the images, otherwise None."""
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
    """Return a label without characters that control a terminal or reorder text. Long labels are cut."""
    cut = label if len(label) <= SHOWN else f"{label[: SHOWN - 1]}…"
    return "".join(c.encode("unicode_escape").decode() if _controls(c) else c for c in cut)


def _controls(character: str) -> bool:
    category = unicodedata.category(character)
    return (category[0] == "C" and character not in JOINERS) or category in ("Zl", "Zp")
