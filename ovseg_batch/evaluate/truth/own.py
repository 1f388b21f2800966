"""A ground truth of one's own for the images of a run: its categories become the classes of an evaluation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ovseg_batch.config import load_config
from ovseg_batch.datasets import Dataset
from ovseg_batch.errors import OvsegError
from ovseg_batch.evaluate.metrics import IGNORE, OTHER
from ovseg_batch.evaluate.truth.datasets import Truth
from ovseg_batch.evaluate.truth.files import TruthFiles, open_files
from ovseg_batch.evaluate.truth.matching import MatchedImages, match_images, match_labels, simple
from ovseg_batch.types.arrays import AnyArray
from ovseg_batch.units import counted
from ovseg_batch.workdir.results import Results
from ovseg_batch.workdir.store import Workdir

log = logging.getLogger(__name__)

BACKGROUND = "background"


@dataclass(frozen=True)
class OwnTruth:
    """A `TruthSource` of a file or folder.

    Attributes:
        dataset: its classes, which have the names of the run's labels where they match.
        matched: the images of the run that it has.
        labels: category → its class.
        notes: sentences about images and labels that do not match.
        has_classes, has_instances: as `TruthSource`.
    """

    dataset: Dataset
    matched: MatchedImages
    notes: tuple[str, ...]
    labels: Mapping[str, str]
    _files: TruthFiles
    _table: AnyArray  # index of a category, IGNORE and OTHER last → class

    has_classes = True

    @property
    def has_instances(self) -> bool:
        return self._files.has_instances

    def has(self, name: str) -> bool:
        return name in self.matched.places

    def read(self, name: str) -> Truth:
        things = {category for category, label in self.labels.items() if label in self.dataset.things}
        drawn = self._files.read(self.matched.places[name], things)
        classes = self._table[drawn.classes]
        instances = None
        if self.has_instances:
            instances = [replace(one, category=self.labels[one.category]) for one in drawn.instances]
        return Truth(classes, instances, (classes.shape,))

    def digest(self, names: Iterable[str]) -> str:
        digest = hashlib.blake2b(repr((self.dataset, dict(self.labels))).encode("utf-8", "surrogatepass"))
        for name in names:
            place = self.matched.places.get(name)
            content = "-" if place is None else self._files.content(place)
            digest.update(f"{name} {content}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:32]


def open_truth(path: Path, results: Results, classes: Path | None = None) -> OwnTruth:
    """Open a ground truth for a run.

    Args:
        path: COCO file, or folder of class maps.
        classes: list of the classes of a folder of maps.

    Raises:
        UsageError: it cannot be read, or has no image or no label of the run.
    """
    files = open_files(path, classes)
    matched = match_images(results.manifest.read_column("file_name"), files.names, files.suffixes, path)
    names = [category.name for category in files.categories]
    labels = match_labels(names, results.labels, synonyms(results.workdir), path)
    own = {name: BACKGROUND if _is_background(name, results.labels) else label for name, label in labels.labels.items()}
    listed = any(simple(label) == BACKGROUND for label in results.labels)
    has_background = not listed and (BACKGROUND in own.values() or (results.has_background and files.has_other))
    scored = list(dict.fromkeys(label for name, label in own.items() if label != BACKGROUND or not has_background))
    marked = {own[one.name]: one.thing for one in files.categories if one.thing is not None}
    is_thing = {label: marked.get(label, label not in results.stuff) for label in scored}
    some_stuff = not all(is_thing.values())
    things = tuple(label for label in scored if is_thing[label]) if files.has_instances or some_stuff else ()
    dataset = Dataset(
        name="truth",
        title=f"the truth {path}",
        classes=tuple(scored),
        words=tuple((label,) for label in scored),
        roots=(".",),
        images=("*",),
        background=(BACKGROUND,) if has_background else (),
        things=things,
    )
    table = np.full(len(names) + 2, IGNORE, np.int16)
    table[: len(names)] = [dataset.scored.index(own[name]) for name in names]
    table[OTHER] = 0 if has_background else OTHER
    notes = [*_image_notes(matched), *labels.notes(results.labels)]
    return OwnTruth(dataset, matched, tuple(notes), own, files, table)


def _is_background(category: str, labels: Sequence[str]) -> bool:
    return simple(category) == BACKGROUND and not any(simple(label) == BACKGROUND for label in labels)


def _image_notes(matched: MatchedImages) -> list[str]:
    notes, found = [], len(matched.places)
    if found < matched.truth:
        notes.append(
            f"{matched.truth - found} of the {counted(matched.truth, 'image')} of the truth are not in the run."
        )
    if matched.ambiguous:
        notes.append(
            f"{counted(matched.ambiguous, 'image')} of the run share a name, so the truth of none of them is certain. "
            "They are left out."
        )
    return notes


def synonyms(workdir: Workdir) -> dict[str, Sequence[str]]:
    """Return label → its synonyms by the settings of a run. Empty where these cannot be read."""
    try:
        config = load_config(workdir.config, environment={}) if workdir.config.is_file() else None
    except OvsegError as error:
        log.debug("%s", error)
        return {}
    return {} if config is None else {label.name: label.words for label in config.labels}
