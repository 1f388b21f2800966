"""The benchmarks of the field as data: classes, their prompts, and where the published files lie.

One YAML a data set. Layouts are those in which each is published, or which its usual converter makes.
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
PREFIX = "dataset:"  # in front of a name where a list of labels is expected


@dataclass(frozen=True, slots=True)
class ClassMaps:
    """Where the class maps lie (`{stem}` and `{name}` of the image) and the ids below the last that no class has."""

    path: str
    absent: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is known of a data set.

    `classes` are its own names, the background not among them; `words` their prompts for CLIP. With `zero_is_ignored`
    a map's 0 is not scored and class k is k + 1; with `background` 0 is the background; else class k is k.
    Paths are relative to a root. `instances` are maps of instance numbers, `coco` an instances json.
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
        """The names of the classes that a map's score has, the background first where it counts."""
        return ("background", *self.classes) if self.background else self.classes

    def labels(self) -> list[dict[str, Any]]:
        """Return the classes as `labels` of a config. They have a kind where the data set knows its things."""

        def entry(name: str, words: tuple[str, ...]) -> dict[str, Any]:
            kind = {"kind": "thing" if name in self.things else "stuff"} if self.things else {}
            return {"name": name, **({} if words == (name,) else {"synonyms": list(words)}), **kind}

        return [entry(*pair) for pair in zip(self.classes, self.words, strict=True)]

    def root(self, folder: Path) -> Path:
        """The data set's own folder at or under the one that a person named.

        Raises:
            UsageError: its files are not there.
        """
        for part in self.roots:
            if any(next(iter((folder / part).glob(pattern)), None) for pattern in self.images):
                return folder / part
        where = " or ".join(str(folder / part / pattern) for part in self.roots for pattern in self.images)
        raise UsageError(f"--root {folder} does not hold {self.title}: there is no {where}.")


@functools.cache
def load(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        UsageError: there is none.
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
