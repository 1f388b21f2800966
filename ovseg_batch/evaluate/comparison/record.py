"""A comparison of two runs in sentences and plain values."""

from __future__ import annotations

import math
from typing import Any

import yaml

from ovseg_batch.evaluate.comparison.compare import Comparison
from ovseg_batch.evaluate.comparison.difference import Difference, TruthDifference
from ovseg_batch.units import counted

EMPTY = "–"


def verdicts(found: Comparison, truth: TruthDifference | None) -> list[str]:
    """Return the result of a comparison: a sentence on ground truth, if there is one, and one on the masks."""
    if not found.images:
        return ["No image is finished in both runs with the same size."]
    images = counted(found.images, "image")
    if found.equal == found.images:
        masks = f"No difference: the masks of {images} are equal in both runs."
    else:
        differ = found.images - found.equal
        masks = f"The masks differ in {differ} of {images}. {found.share:.2%} of all pixels have another label."
    return [masks] if truth is None else [truth.sentence(), masks]


def comparison_notes(found: Comparison) -> list[str]:
    """Return sentences on images and labels that were not compared."""
    notes = []
    for side, run in ((0, "A"), (1, "B")):
        if found.only[side]:
            notes.append(f"Images that only {run} lists: {found.only[side]:,}. They are not compared.")
    if found.unfinished:
        notes.append(f"Images that are not finished in both runs: {found.unfinished:,}. They are not compared.")
    if found.resized:
        notes.append(f"Images that have another size in B: {found.resized:,}. They are not compared.")
    for side, run in ((0, "A"), (1, "B")):
        if found.only_labels[side]:
            notes.append(f"Labels that only {run} has: {', '.join(found.only_labels[side])}.")
    return notes


def shown_value(value: Any) -> str:
    """Return a value of a setting as YAML writes it in one line."""
    if value is None:
        return EMPTY
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def record(found: Comparison, truth: TruthDifference | None) -> dict[str, Any]:
    """Return a comparison as plain values, for JSON."""
    labels: dict[str, Any] = {}
    for name, one in found.by_label.items():
        labels[name] = {
            "masks": one.masks,
            "pixels": one.pixels,
            "matched": one.matched,
            "mean IoU": one.iou,
            "other label": one.changed,
            "only in A": one.only[0],
            "only in B": one.only[1],
        }
    return {
        "verdict": " ".join(verdicts(found, truth)),
        "images": found.images,
        "equal images": found.equal,
        "images only in A": found.only[0],
        "images only in B": found.only[1],
        "not finished in both": found.unfinished,
        "of another size": found.resized,
        "labels only in A": found.only_labels[0],
        "labels only in B": found.only_labels[1],
        "pixels with another label": found.share,
        "settings": {key: {"A": one, "B": other} for key, (one, other) in found.settings.items()},
        "labels": labels,
        "masks from label to label": [
            {"A": one, "B": other, "masks": count} for (one, other), count in found.moved.most_common()
        ],
        "pixels from label to label": [
            {"A": one, "B": other, "pixels": count} for one, other, count in found.flows(found.pixels.size)
        ],
        "most changed": [
            {
                "file_name": one.file_name,
                "pixels with another label": one.share,
                "masks without a partner": one.unmatched,
                "changes": [{"A": first, "B": second, "share": share} for first, second, share in one.changes],
            }
            for one in found.most
        ],
        "truth": None if truth is None else _truth(truth),
    }


def _truth(truth: TruthDifference) -> dict[str, Any]:
    return {
        "images": truth.images,
        "mIoU": _difference(truth.mean),
        "IoU": {name: _difference(one) for name, one in truth.classes.items()},
    }


def _difference(one: Difference) -> dict[str, Any]:
    known = not math.isnan(one.limits[0])
    return {"A": one.a, "B": one.b, "B - A": one.change, "interval": list(one.limits) if known else None}
