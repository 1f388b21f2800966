"""Benchmark data sets: classes, their prompts, and the layout of the published files.

There is one YAML file per data set. Layouts are those of the publisher or of the usual converter.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ovseg_batch.errors import UsageError, nearest

NAMES = ("voc21", "voc20", "coco-stuff", "coco-object", "ade20k", "context", "context60", "coco-ov", "scenes")
PREFIX = "dataset:"  # prefix of a data set's name in place of a list of labels


@dataclass(frozen=True, slots=True)
class ClassMaps:
    """The class maps of a data set.

    Attributes:
        path: path of the map of an image, with `{stem}` or `{name}` of the image.
        absent: unused ids below the largest one.
    """

    path: str
    absent: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """The description of a data set. Paths are relative to a root.

    Attributes:
        classes: names of the classes, without the background.
        words: prompts of each class for CLIP.
        truth: class maps; the first existing layout is used.
        split: list of the images in the split.
        instances: maps of instance numbers.
        coco: COCO instances file.
        background: words of the background. If there are any, 0 is the background in class maps.
        zero_is_ignored: 0 is ignored in class maps, and class k has the value k + 1.
        things: classes of countable objects.
        novel: classes that are not used in training.
        settings: settings of runs over this data set, by key.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    roots: tuple[str, ...]
    images: tuple[str, ...]
    truth: tuple[ClassMaps, ...] = ()
    split: str | None = None
    instances: str | None = None
    coco: str | None = None
    background: tuple[str, ...] = ()
    zero_is_ignored: bool = False
    things: tuple[str, ...] = ()
    novel: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def scored(self) -> tuple[str, ...]:
        """The names of the scored classes. The background, if scored, comes first."""
        return ("background", *self.classes) if self.background else self.classes

    def labels(self) -> list[dict[str, Any]]:
        """Return the classes as `labels` of a config. They have a kind where the data set knows its things."""

        def entry(name: str, words: tuple[str, ...]) -> dict[str, Any]:
            kind = {"kind": "thing" if name in self.things else "stuff"} if self.things else {}
            return {"name": name, **({} if words == (name,) else {"synonyms": list(words)}), **kind}

        return [entry(*pair) for pair in zip(self.classes, self.words, strict=True)]

    def root(self, folder: Path) -> Path:
        """Return the data set's folder at or below a folder.

        Raises:
            UsageError: the files of the data set do not exist.
        """
        for part in self.roots:
            if any(next(iter((folder / part).glob(pattern)), None) for pattern in self.images):
                return folder / part
        where = " or ".join(str(folder / part / pattern) for part in self.roots for pattern in self.images)
        raise UsageError(f"--root {folder} does not hold {self.title}: there is no {where}.")


@functools.cache
def load(name: str) -> Dataset:
    """Load a data set by its name.

    Raises:
        UsageError: there is no data set of that name.
    """
    if name not in NAMES:
        raise UsageError(f"There is no data set {name!r}.{nearest(name, NAMES)} Data sets: {', '.join(NAMES)}.")
    tree: dict[str, Any] = yaml.safe_load(
        resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    )
    entries = [entry if isinstance(entry, dict) else {"name": entry} for entry in tree.pop("classes")]
    classes = tuple(entry["name"] for entry in entries)
    things, last = tree.pop("things", 0), tree.pop("things_last", False)
    truth = tree.pop("truth", [])
    return Dataset(
        name=name,
        classes=classes,
        words=tuple(tuple(entry.get("words", [entry["name"]])) for entry in entries),
        images=_several(tree.pop("images")),
        truth=tuple(
            ClassMaps(one) if isinstance(one, str) else ClassMaps(one["path"], tuple(one["absent"]))
            for one in ([truth] if isinstance(truth, str) else truth)
        ),
        things=classes[len(classes) - things :] if last else classes[:things],
        **_frozen(tree),
    )


def _frozen(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()}


def _several(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
