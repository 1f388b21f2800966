"""Benchmark data sets: classes, their prompts, and the layout of the published files.

There is one YAML file per data set. Layouts are those of the publisher or of the usual converter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ovseg_batch.errors import UsageError, nearest

NAMES = (
    *("voc21", "voc20", "context60", "context", "coco-object", "coco-stuff", "coco-stuff10k", "ade20k", "cityscapes"),
    *("context459", "ade847", "coco-ov", "scenes"),
)
FILES = (".yaml", ".yml")
PREFIX = "dataset:"  # prefix of a data set's name in place of a list of labels


@dataclass(frozen=True, slots=True)
class ClassMaps:
    """The class maps of a data set.

    Attributes:
        path: path of the map of an image, with `{stem}` or `{name}` of the image. `*` stands for any folder.
        absent: unused ids below the largest one.
        rest_is_background: the first value is the first class, and all values after the last class are the background.
    """

    path: str
    absent: tuple[int, ...] = ()
    rest_is_background: bool = False


@dataclass(frozen=True, slots=True)
class Dataset:
    """The description of a data set. Paths are relative to a root.

    Attributes:
        classes: names of the classes, without the background.
        words: prompts of each class for CLIP.
        truth: class maps; the first existing layout is used.
        split: list of the images in the split.
        split_by_truth: the split is the images that have a class map.
        instances: maps of instance numbers.
        coco: COCO instances file.
        background: words of the background. If there are any, 0 is the background in class maps.
        zero_is_ignored: 0 is ignored in class maps, and class k has the value k + 1.
        ignored: value of ignored pixels in class maps. In maps of 8 bits 255 is ignored too.
        things: classes of countable objects.
        novel: classes that are not used in training.
        image_ending: last part of the images' stems that the names of the ground truth lack.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    roots: tuple[str, ...]
    images: tuple[str, ...]
    truth: tuple[ClassMaps, ...] = ()
    split: str | None = None
    split_by_truth: bool = False
    instances: str | None = None
    coco: str | None = None
    background: tuple[str, ...] = ()
    zero_is_ignored: bool = False
    ignored: int = 255
    things: tuple[str, ...] = ()
    novel: tuple[str, ...] = ()
    image_ending: str = ""

    @property
    def scored(self) -> tuple[str, ...]:
        """The names of the scored classes. The background, if scored, comes first."""
        return ("background", *self.classes) if self.background else self.classes

    def labels(self, words: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        """Return the classes as `labels` of a config. They have a kind where the data set knows its things.

        Args:
            words: class → prompts, in place of the data set's own.
        """
        own = words or {}

        def entry(name: str, words: tuple[str, ...]) -> dict[str, Any]:
            kind = {"kind": "thing" if name in self.things else "stuff"} if self.things else {}
            return {"name": name, **({} if words == (name,) else {"synonyms": list(words)}), **kind}

        return [entry(n, tuple(own.get(n, prompts))) for n, prompts in zip(self.classes, self.words, strict=True)]

    def is_at(self, folder: Path) -> bool:
        """Return whether images of the data set are at or below a folder."""
        try:
            return self.root(folder) is not None
        except UsageError:
            return False

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


def reference(name: str) -> str:
    """Return a data set's name, or the absolute path of its file."""
    return str(Path(name).absolute()) if name.endswith(FILES) else name


@functools.cache
def load(name: str) -> Dataset:
    """Load a data set by its name, or by the path of a YAML file that describes one (docs/benchmarks.md).

    Raises:
        UsageError: there is no data set of that name, or the file cannot be read or describes none.
    """
    if name in NAMES:
        text = resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return _parse(yaml.safe_load(text), name)
    if not name.endswith(FILES):
        raise UsageError(
            f"There is no data set {name!r}.{nearest(name, NAMES)} Data sets: {', '.join(NAMES)}; or the path of a "
            ".yaml file that describes one."
        )
    try:
        tree = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"There is no file {name} that describes a data set.") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"The description of a data set, {name}, cannot be read: {error}") from None
    try:
        return _parse(tree, Path(name).stem)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{name} does not describe a data set: {where}: {first['msg']}.") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{name} does not describe a data set: {reason}.") from None


def _parse(tree: dict[str, Any], name: str) -> Dataset:
    """Build a data set from the mapping of its file.

    Raises:
        KeyError, TypeError, ValueError: a key is missing, unknown, or of another type.
    """
    if not isinstance(tree, dict):
        raise ValueError("it is not a mapping of keys")
    tree = dict(tree)
    listed = tree.pop("classes")
    if isinstance(listed, str):
        other = load(listed)
        listed = [{"name": one, "words": words} for one, words in zip(other.classes, other.words, strict=True)]
    entries = [entry if isinstance(entry, dict) else {"name": entry} for entry in listed]
    classes = tuple(entry["name"] for entry in entries)
    if len(set(classes)) < len(classes) or not classes:
        raise ValueError("its classes are not different names")
    things, last = tree.pop("things", 0), tree.pop("things_last", False)
    found = {
        "name": name,
        "classes": classes,
        "words": [entry.get("words", [entry["name"]]) for entry in entries],
        "images": _several(tree.pop("images")),
        "roots": tree.pop("roots", ["."]),
        "truth": [{"path": one} if isinstance(one, str) else one for one in _several(tree.pop("truth", []))],
        "things": classes[len(classes) - things :] if last else classes[:things],
    }
    if unknown := sorted(map(str, tree.keys() - {one.name for one in fields(Dataset)})):
        raise ValueError(f"{unknown[0]!r} is no key of a data set")
    dataset = TypeAdapter(Dataset).validate_python({**tree, **found})
    _check_values(dataset)
    return dataset


def _check_values(dataset: Dataset) -> None:
    """Raise ValueError if the classes do not fit into the values of the class maps."""
    if not 0 < dataset.ignored < 1 << 16:
        raise ValueError(f"ignored: {dataset.ignored} is not a value of a map of 8 or 16 bits")
    for maps in dataset.truth:
        if maps.rest_is_background and (not dataset.background or dataset.zero_is_ignored):
            raise ValueError(f"{maps.path} has rest_is_background, which needs a background, and 0 as a class")
        used = len(dataset.scored) + dataset.zero_is_ignored + len(maps.absent)
        if used > dataset.ignored:
            raise ValueError(
                f"its {len(dataset.classes)} classes do not fit below {dataset.ignored}, the value of ignored pixels; "
                "maps of 16 bits can have `ignored: 65535`"
            )


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]
