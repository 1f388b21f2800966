"""Masks of two methods merged: each method alone, the rules of `method: hybrid`, and what agreement tells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ablations.open_world import HALF, LEAST_STUFF, SCENES, Truths, auc, read_masks
from ovseg_batch.config import load_config, presets
from ovseg_batch.evaluate.run import evaluate
from ovseg_batch.io import rle
from ovseg_batch.methods.merging import agreed
from ovseg_batch.runs import pipeline
from ovseg_batch.settings import Config
from ovseg_batch.types import Annotation, FinishedImage
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

SETTINGS: dict[str, Any] = {
    "background": [],
    "clip.model": "demo-token",
    "clip.weights": None,
    "sam.model": "demo",
    "propose.points_per_side": 16,
    "propose.predicted_iou": 0.6,
    "propose.stability": 0.7,
    "classify.scales": [1.0],
    "classify.weights": [1.0],
    "merge.things": "proposals",
    "run.workers": 0,
    "manifest.shard_rows": 50,
}
METHODS = ("dense", "proposals")
RULES = ("kind", "best", "average")
COLUMNS = (
    *("mIoU", "mIoU stuff", "mIoU things", "boundary F1", "mask AP", "PQ"),
    *("precision", "recall of stuff", "recall of things", "confidence AUC"),
)
ABOUT = (
    "`demo-token` for both methods, because a run has one CLIP. `propose` has 16 × 16 points. `dense` is the preset "
    "`prompted`, and `proposals` the preset of that name. A mask is right if more than half of its pixels have its "
    "class. Precision is the share of right masks. A thing of at least 0.1 % of the image is found if a mask of its "
    "class has an IoU of .5 with it, and a kind of stuff if all masks of its class together have."
)
AGREEMENT = (
    "Masks of each method alone, by what the other method has in the same place: the label in at least half of the "
    "mask (confirmed) or not (contradicted). AUC is that of the confidence, for right against wrong masks, before and "
    "with `merge.agreement`."
)


class Merging:
    """Runs both methods and the rules in one workdir, which computes what they share once."""

    def __init__(self, root: Path, overrides: Sequence[str]) -> None:
        self._root, self._overrides = root, list(overrides)
        self._workdir, self._truths = Workdir(root / "merging"), Truths(root)

    def measure(self, **settings: Any) -> dict[str, float]:
        """Return the columns of a row."""
        self._run(settings)
        masks = [one for found in read_masks(self._workdir, self._truths).values() for one in found]
        right = [one.right for one in masks]
        return {
            **evaluate(self._workdir, SCENES, self._root).figures(),
            "precision": float(np.mean(right)),
            **self._recall(),
            "confidence AUC": auc([one.confidence for one in masks], right),
        }

    def agreement(self, method: str) -> dict[str, float]:
        """Return the columns of a row of the table of agreement: the masks of a method against the other one's."""
        [other] = (one for one in METHODS if one != method)
        of_other = {image.row.file_name: image.annotations for image in self._images(method=other)}
        shares, confidences = list[float](), list[float]()
        for image in self._images(method=method):
            others = of_other[image.row.file_name]
            shares += [_coverage(one, others, image.size) for one in image.annotations]
            confidences += [one.confidence for one in image.annotations]
        right = np.array([one.right for found in read_masks(self._workdir, self._truths).values() for one in found])
        confirmed = np.array(shares) >= HALF
        after = [agreed(*pair) for pair in zip(confidences, shares, strict=True)]
        return {
            "masks": len(right),
            "right": right.mean(),
            "confirmed": confirmed.mean(),
            "confirmed and right": right[confirmed].mean(),
            "contradicted and right": right[~confirmed].mean(),
            "AUC": auc(confidences, right),
            "AUC with agreement": auc(after, right),
        }

    def _recall(self) -> dict[str, float]:
        found: dict[str, list[bool]] = {"recall of stuff": [], "recall of things": []}
        for image in self._results():
            truth = self._truths[image.row.file_name]
            for k in np.unique(truth.classes):
                region = truth.classes == k
                if (label := SCENES.classes[k]) not in SCENES.things and region.mean() >= LEAST_STUFF:
                    counts = [one.rle for one in image.annotations if one.category == label]
                    found["recall of stuff"].append(_iou(rle.merged(counts, *image.size), region) >= HALF)
            for label, mask in truth.objects:
                if label in SCENES.things and mask.mean() >= LEAST_STUFF:
                    own = (one.rle for one in image.annotations if one.category == label)
                    found["recall of things"].append(any(_iou(one, mask) >= HALF for one in own))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def _images(self, **settings: Any) -> list[FinishedImage[Annotation]]:
        self._run(settings)
        return list(self._results())

    def _results(self) -> Iterable[FinishedImage[Annotation]]:
        results = Results.open(self._workdir)
        for shard in range(results.manifest.shards):
            yield from results.shard(shard)

    def _run(self, settings: dict[str, Any]) -> None:
        pipeline.run([str(self._root / "images")], self._workdir, self._config(settings), progress=False)

    def _config(self, settings: dict[str, Any]) -> Config:
        own = [f"{key}={json.dumps(value)}" for key, value in {**SETTINGS, **settings}.items()]
        return load_config(
            presets()["prompted"], [*own, *self._overrides], {"labels": "dataset:scenes"}, environment={}
        )


def _coverage(mask: Annotation, others: Sequence[Annotation], size: tuple[int, int]) -> float:
    """Return the share of a mask that masks of the same class cover."""
    whole = rle.merged([one.rle for one in others if one.category == mask.category], *size)
    return float(rle.overlaps_with([mask.rle], [whole], *size)[1][0, 0])


def _iou(counts: bytes, mask: np.ndarray[Any, Any]) -> float:
    return float(rle.overlaps_with([counts], [rle.encode(mask)], *mask.shape)[0][0, 0])


def _line(name: str, values: Iterable[float]) -> str:
    return f"| {name} | " + " | ".join(f"{value:.3f}" if value <= 1 else f"{value:.0f}" for value in values) + " |"


def table(root: Path, overrides: Sequence[str]) -> str:
    """Return the tables of merging as Markdown."""
    merging = Merging(root, overrides)
    rows: list[tuple[str, dict[str, Any]]] = [(f"{method} alone", {"method": method}) for method in METHODS]
    for rule in RULES:
        for agreement in (False, True):
            settings = {"method": "hybrid", "merge.rule": rule, "merge.agreement": agreement}
            rows.append((f"{rule}, agreement" if agreement else rule, settings))
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name, settings in rows:
        found = merging.measure(**settings)
        lines.append(_line(name, [found[column] for column in COLUMNS]))
        print(lines[-1], flush=True)
    agreements = {method: merging.agreement(method) for method in METHODS}
    columns = next(iter(agreements.values()))
    below = ["| masks of | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    below += [_line(method, found.values()) for method, found in agreements.items()]
    return "\n".join(["## Two methods merged", "", ABOUT, "", *lines, "", AGREEMENT, "", *below, ""])
