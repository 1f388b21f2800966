"""A few labels on scenes that hold much else: what is found where it is, and what is found where it is not.

A run with all words is made once. Every draw of a few words is a query of it, in which some of the other words compete.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ovseg_batch import datasets
from ovseg_batch.config import load_config, presets
from ovseg_batch.evaluate.truth.datasets import TruthReader
from ovseg_batch.io import rle
from ovseg_batch.runs import pipeline
from ovseg_batch.types import Annotation
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

Array = np.ndarray[Any, Any]

SCENES = datasets.load("scenes")
SIZES = (1, 3, 5, 11)  # labels of a draw
MISSING = {"all others": 0, "five are missing": 5, "ten are missing": 10}  # words that do not compete
RULES: dict[str, dict[str, Any]] = {
    "neither": {"background": "none"},
    "background alone": {"presence.margin": 0},
    "background and presence": {},
}
METHODS = ("prompted", "guided", "trident", "proposals")
LEAST_STUFF = 0.001  # of the image: connected parts of stuff that are smaller are no objects
HALF = 0.5
OPAQUE = 127  # of 255: pixels with more alpha are kept in an edited image
CUT_OUTS = 100  # scenes
SHARES = (LEAST_STUFF, 0.01, 0.03, 0.1, 1.0)  # of the image: limits between the rows of `by_size`
COLUMNS = ("precision", "at IoU .5", "recall", "of stuff", "of things", "absent found", "confidence AUC", "covered")

KEEP: dict[str, Any] = {
    "dense.cache": "features",
    "sam.cache": "embeddings",
    "run.workers": 0,
    "manifest.shard_rows": 64,
}
DENSE = {"clip.model": "demo", "sam.model": "demo"}
MASKS_FIRST = {"clip.model": "demo-token", "sam.model": "demo", "propose.predicted_iou": 0.6, "propose.stability": 0.7}


@dataclass(frozen=True, slots=True)
class Found:
    """A mask: its label, the share of its pixels that have its class, and the object that it fits best."""

    label: str
    share: float
    iou: float
    object: int
    confidence: float
    area: float

    @property
    def right(self) -> bool:
        return self.share > HALF


Masks = Mapping[str, Sequence[Found]]  # by file name


@dataclass(frozen=True, slots=True)
class Objects:
    """What an image holds: its class map, and each object's class and mask; stuff counts whole and by its parts."""

    classes: Array
    objects: list[tuple[str, Array]]

    @property
    def present(self) -> set[str]:
        return {SCENES.classes[k] for k in np.unique(self.classes)}


class Truths:
    """Reads the objects of images, each once."""

    def __init__(self, root: Path) -> None:
        self._reader = TruthReader(SCENES, root)
        self._known: dict[str, Objects] = {}

    def __getitem__(self, name: str) -> Objects:
        if name not in self._known:
            truth = self._reader.read(name)
            assert truth.classes is not None and truth.instances is not None
            objects: list[tuple[str, Array]] = []
            for k in np.unique(truth.classes):
                if (label := SCENES.classes[k]) not in SCENES.things:
                    objects += [(label, part) for part in _parts(truth.classes == k)]
            objects += [(one.category, rle.decode(one.rle, *truth.classes.shape)) for one in truth.instances]
            self._known[name] = Objects(truth.classes, objects)
        return self._known[name]


def _parts(region: Array) -> list[Array]:
    """Return a region, and its connected parts where it has several."""
    count, numbers = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
    parts = [numbers == k for k in range(1, count)] if count > 2 else []
    return [region, *(part for part in parts if part.mean() >= LEAST_STUFF)]


def read_masks(workdir: Workdir, truths: Truths) -> Masks:
    """Compare every mask of a run with the truth."""
    results = Results.open(workdir)
    found: dict[str, list[Found]] = {}
    for shard in range(results.manifest.shards):
        for image in results.shard(shard):
            name = image.row.file_name
            found[name] = [_compared(one, truths[name]) for one in image.annotations]
    return found


def _compared(annotation: Annotation, truth: Objects) -> Found:
    label = annotation.category
    mask = rle.decode(annotation.rle, *truth.classes.shape)
    share = float((truth.classes[mask] == SCENES.classes.index(label)).mean())
    best, which = 0.0, -1
    for k, (of, drawn) in enumerate(truth.objects):
        shared = np.count_nonzero(mask & drawn) if of == label else 0
        if shared and (iou := shared / (annotation.area + np.count_nonzero(drawn) - shared)) > best:
            best, which = iou, k
    return Found(label, share, best, which, annotation.confidence, annotation.area / truth.classes.size)


@dataclass
class Tally:
    """Adds up draws."""

    masks: list[Found] = field(default_factory=list)
    wanted: dict[str, int] = field(default_factory=lambda: {"stuff": 0, "things": 0})
    found: dict[str, int] = field(default_factory=lambda: {"stuff": 0, "things": 0})
    absent: int = 0
    absent_found: int = 0
    images: int = 0

    def add(self, labels: Sequence[str], draw: Masks, whole: Masks, truths: Truths) -> None:
        """Add a draw.

        Args:
            labels: what was looked for.
            draw: what was found.
            whole: what the run with all words found.
            truths: of all images.
        """
        for name, masks in draw.items():
            self.images += 1
            self.masks += masks
            there = {mask.label for mask in masks}
            gone = [label for label in labels if label not in truths[name].present]
            self.absent += len(gone)
            self.absent_found += len(there.intersection(gone))
            got = {mask.object for mask in masks if mask.iou >= HALF}
            for one in {(mask.label, mask.object) for mask in whole[name] if mask.iou >= HALF}:
                if one[0] in labels:
                    kind = "things" if one[0] in SCENES.things else "stuff"
                    self.wanted[kind] += 1
                    self.found[kind] += one[1] in got

    def figures(self) -> dict[str, float]:
        """The columns of the table, shares in [0, 1]; NaN where there was nothing to count."""
        right = [mask.right for mask in self.masks]
        wanted, found = sum(self.wanted.values()), sum(self.found.values())
        return {
            "precision": _mean(right),
            "at IoU .5": _mean([mask.iou >= HALF for mask in self.masks]),
            "recall": found / wanted if wanted else np.nan,
            "of stuff": self.found["stuff"] / self.wanted["stuff"] if self.wanted["stuff"] else np.nan,
            "of things": self.found["things"] / self.wanted["things"] if self.wanted["things"] else np.nan,
            "absent found": self.absent_found / self.absent if self.absent else np.nan,
            "confidence AUC": auc([mask.confidence for mask in self.masks], right),
            "covered": sum(mask.area for mask in self.masks) / self.images if self.images else np.nan,
        }


def _mean(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else np.nan


def auc(scores: Iterable[float], right: Iterable[bool]) -> float:
    """The chance that a right mask has a higher score than a wrong one; NaN without both kinds."""
    values, good = np.array(list(scores), float), np.array(list(right), bool)
    positives, negatives = int(good.sum()), int((~good).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[good].sum() - positives * (positives + 1) / 2) / (positives * negatives))


class OpenWorld:
    """Runs draws in one folder of scenes and measures them.

    Args:
        root: `images/` and `truth/`, and where the runs live.
        overrides: `section.key=value` for every run.
    """

    def __init__(self, root: Path, overrides: Sequence[str]) -> None:
        self._root, self._overrides = root, list(overrides)
        self._truths = Truths(root)
        self._whole: dict[str, Masks] = {}

    def measure(self, method: str, size: int, missing: int, rule: Mapping[str, Any], draws: int) -> dict[str, float]:
        """The figures of some draws of labels.

        Args:
            method: a preset.
            size: labels of a draw.
            missing: how many of the other words do not compete; they are drawn, too.
            rule: settings.
            draws: how many; the same for every method and rule.
        """
        source = self._run(method)
        if method not in self._whole:
            self._whole[method] = read_masks(source, self._truths)
        tally = Tally()
        for number in range(draws):
            labels, unknown = draw(size, missing, number)
            found = read_masks(self._query(source, labels, unknown, rule), self._truths)
            tally.add(labels, found, self._whole[method], self._truths)
        return tally.figures()

    def by_size(self, rule: Mapping[str, Any]) -> str:
        """Return a Markdown table: how well things are found, each as the only label, by their share of the image.

        Args:
            rule: settings.
        """
        source = self._run("prompted")
        found: list[tuple[float, float, float]] = []
        for thing in SCENES.things:
            every = self._ious(source, thing)
            alone = self._ious(self._query(source, [thing], [], rule), thing)
            found += [(share, iou, best) for (share, iou), (_, best) in zip(alone, every, strict=True)]
        lines = [
            "| share of the image | things | without a mask | IoU | IoU of the others | IoU, all words are labels |"
        ]
        lines.append("|---|---|---|---|---|---|")
        for low, high in (*itertools.pairwise(SHARES), (LEAST_STUFF, 1.0)):
            rows = [row for row in found if low <= row[0] < high]
            if not rows:
                continue
            _, iou, best = np.array(rows).T
            masked = iou[iou > 0].mean() if iou.any() else np.nan
            means = " | ".join(f"{mean:.3f}" for mean in (iou.mean(), masked, best.mean()))
            lines.append(f"| {low:.1%} to {high:.1%} | {len(rows)} | {np.sum(iou == 0)} | {means} |")
        return "\n".join(lines)

    def _ious(self, workdir: Workdir, thing: str) -> list[tuple[float, float]]:
        """Return the share of the image and the IoU of a thing in every scene that holds it, in row order."""
        results, found = Results.open(workdir), []
        for shard in range(results.manifest.shards):
            for image in results.shard(shard):
                true = self._truths[image.row.file_name].classes == SCENES.classes.index(thing)
                if true.mean() < LEAST_STUFF:
                    continue
                kept = np.zeros(true.shape, bool)
                for one in image.annotations:
                    if one.category == thing:
                        kept |= rle.decode(one.rle, *true.shape)
                found.append((float(true.mean()), float((kept & true).sum() / (kept | true).sum())))
        return found

    def _run(self, method: str) -> Workdir:
        workdir = Workdir(self._root / f"open-world-{method}")
        settings = {**KEEP, **(MASKS_FIRST if method == "proposals" else DENSE)}
        overrides = [*(f"{key}={json.dumps(value)}" for key, value in settings.items()), *self._overrides]
        config = load_config(presets()[method], overrides, {"labels": "dataset:scenes"}, environment={})
        pipeline.run([str(self._root / "images")], workdir, config, progress=False)
        return workdir

    def _query(
        self, source: Workdir, labels: Sequence[str], unknown: Sequence[str], rule: Mapping[str, Any]
    ) -> Workdir:
        answer = Workdir(self._root / "open-world-answer")
        shutil.rmtree(answer.root, ignore_errors=True)
        allow = [] if rule.get("background") == "none" else list(unknown)
        settings = {"labels": [{"name": label, "allow": allow} for label in labels], "background": "auto", **rule}
        overrides = [*(f"{key}={json.dumps(value)}" for key, value in settings.items()), *self._overrides]
        pipeline.query(source, answer, None, overrides, progress=False)
        return answer


@dataclass(slots=True)
class CutOuts:
    """How well one named thing was cut out of scenes that hold it.

    Attributes:
        ious: IoU of the pixels that an edited image keeps with the thing's pixels, one per scene.
        whole: scenes of which everything was kept.
        nothing: scenes without a mask; they have no edited image and an IoU of 0.
    """

    ious: list[float] = field(default_factory=list)
    whole: int = 0
    nothing: int = 0

    def add(self, thing: str, paths: Sequence[Path], workdir: Workdir, truths: Truths) -> None:
        """Compare the edited images of one thing with the truth."""
        edited = {path.stem: path for path in workdir.edited.rglob("*") if path.is_file()}
        masked = {Path(name).name for name, masks in read_masks(workdir, truths).items() if masks}
        for path in paths:
            if path.name not in masked:
                self.nothing += 1
                self.ious.append(0.0)
                continue
            kept = np.array(Image.open(edited[path.stem]).convert("RGBA"))[..., 3] > OPAQUE
            true = truths[path.name].classes == SCENES.classes.index(thing)
            self.ious.append(float((kept & true).sum() / (kept | true).sum()))
            self.whole += bool(kept.all())


def cut_out(root: Path, overrides: Sequence[str], count: int, largest: bool) -> CutOuts:
    """Cut one thing out of every scene, `--labels THING --edit cutout`, with the default settings.

    Args:
        root: `images/` and `truth/`, and where the runs live.
        overrides: `section.key=value` for every run.
        count: how many scenes; those without a thing of at least `LEAST_STUFF` of their pixels are passed over.
        largest: the thing with the most pixels, or any thing, drawn by chance.
    """
    truths, chance = Truths(root), random.Random("cut-outs")
    scenes_of: dict[str, list[Path]] = {}
    for path in sorted((root / "images").iterdir()):
        classes = truths[path.name].classes
        shares = {name: float((classes == SCENES.classes.index(name)).mean()) for name in SCENES.things}
        things = [name for name in SCENES.things if shares[name] >= LEAST_STUFF]
        if things and sum(map(len, scenes_of.values())) < count:
            thing = max(things, key=lambda name: shares[name]) if largest else chance.choice(things)
            scenes_of.setdefault(thing, []).append(path)
    found = CutOuts()
    for thing, paths in scenes_of.items():
        found.add(thing, paths, _cut_out(root, overrides, thing, paths), truths)
    return found


def _cut_out(root: Path, overrides: Sequence[str], thing: str, paths: Sequence[Path]) -> Workdir:
    """Run one thing's scenes."""
    listing, workdir = root / f"cut-out-{thing}.txt", Workdir(root / f"cut-out-{thing}")
    shutil.rmtree(workdir.root, ignore_errors=True)
    listing.write_text("".join(f"{path}\n" for path in paths))
    chosen = ["run.workers=0", *(f"{key}={json.dumps(value)}" for key, value in DENSE.items()), *overrides]
    config = load_config("demo", chosen, {"labels": thing, "edit.mode": "cutout"}, environment={})
    pipeline.run([str(listing)], workdir, config, progress=False)
    return workdir


def draw(size: int, missing: int, number: int) -> tuple[list[str], list[str]]:
    """Labels, and the words among the others that do not compete; at least one word competes."""
    chance = random.Random(f"{size} {missing} {number}")
    labels = chance.sample(SCENES.classes, size)
    others = [word for word in SCENES.classes if word not in labels]
    return labels, chance.sample(others, min(missing, len(others) - 1))


def cut_out_line(found: CutOuts, which: str) -> str:
    """Describe cut-outs in a sentence."""
    return (
        f"Cut-outs of {which} (`--labels THING --edit cutout`) on {len(found.ious)} scenes that hold it: mean "
        f"IoU of the kept pixels with the thing's {np.mean(found.ious):.3f}, median {np.median(found.ious):.3f}. "
        f"{found.whole} images are kept whole, and {found.nothing} more have no mask, so no edited file."
    )


def table(
    root: Path, overrides: Sequence[str], draws: int, methods: Sequence[str] = METHODS, sizes: Sequence[int] = SIZES
) -> str:
    """The tables of the open world as Markdown: rules on `prompted`, numbers of labels, methods."""
    world = OpenWorld(root, overrides)
    rows = [
        *(
            (f"prompted, 3, {missing}, {rule}", "prompted", 3, missing, rule)
            for missing in MISSING
            for rule in RULES
            if rule != "neither" or not MISSING[missing]  # without competing words none can be missing
        ),
        *(
            (f"prompted, {size}, {missing}", "prompted", size, missing, "background and presence")
            for size in sizes
            if size != 3
            for missing in MISSING
        ),
        *(
            (f"{method}, 3, {missing}", method, 3, missing, "background and presence")
            for method in methods
            if method != "prompted"
            for missing in MISSING
        ),
    ]
    lines = ["| method, labels, competing words | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for title, method, size, missing, rule in rows:
        found = world.measure(method, size, MISSING[missing], RULES[rule], draws)
        lines.append(f"| {title} | " + " | ".join(f"{found[column]:.3f}" for column in COLUMNS) + " |")
        print(lines[-1], flush=True)
    about = (
        f"{draws} draws of labels a row. A mask is right if more than half of its pixels have its class. Recall is the "
        "share of the objects that the run with all words finds at IoU .5. A label is absent where the image lacks it."
    )
    which = {"the largest thing": True, "any thing": False}
    cut = "\n".join(cut_out_line(cut_out(root, overrides, CUT_OUTS, which[name]), name) for name in which)
    print(cut, flush=True)
    by_size = world.by_size({})
    print(by_size, flush=True)
    return "\n".join(["## Open world", "", about, "", *lines, "", cut, "", by_size, ""])
