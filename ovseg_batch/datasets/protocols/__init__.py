"""Published evaluation protocols: one YAML file per method, with one entry per data set.

A protocol has the words, the background and the settings with which a method was evaluated on a data set, and the
published mIoU. `labels: dataset:NAME` takes them from the protocol that the setting `protocol` names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, get_args

import yaml

Name = Literal[
    "sclip",
    "naclip",
    "naclip-no-pamr",
    "clearclip",
    "maskclip",
    "itaclip",
    "corrclip",
    "corrclip-masks",
    "trident",
    "sam3-instances",
    "sam3-fused",
]
NAMES: tuple[Name, ...] = get_args(Name)
COMMON = "sclip"  # the protocol whose words and thresholds other presets use


@dataclass(frozen=True, slots=True)
class Row:
    """The protocol of a method on one data set.

    Attributes:
        published: mIoU in per cent. None: the source prints none.
        words: class → its prompts, where they differ from those of the data set.
        background: background words, where they differ from those of the data set.
        settings: key → value.
        files: setting → name of the published file or folder that it must name, because it is not in this package.
    """

    method: str
    dataset: str
    published: float | None = None
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    background: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.method}-{self.dataset}"


@dataclass(frozen=True, slots=True)
class Protocol:
    """The protocol of a method.

    Attributes:
        source: publication and code.
        preset: the settings of the method.
        settings: key → value, for every data set that has a row.
        rows: data set → its row.
        files_at: where the files of the rows are published.
    """

    source: str
    preset: str
    settings: Mapping[str, Any]
    rows: Mapping[str, Row]
    files_at: str = ""

    def settings_of(self, dataset: str) -> dict[str, Any]:
        """Return all settings on a data set, or an empty dictionary if the data set has no row."""
        row = self.rows.get(dataset)
        return {**self.settings, **row.settings} if row else {}


@functools.cache
def load(method: str) -> Protocol:
    """Load the protocol of a method, one of `NAMES`."""
    tree = _tree(method)
    rows = {name: _row(method, name, entry) for name, entry in tree.pop("datasets").items()}
    return Protocol(rows=rows, **tree)


def _tree(method: str) -> dict[str, Any]:
    """Return the content of a protocol's file. `base` names a protocol that it differs from."""
    tree: dict[str, Any] = yaml.safe_load(
        resources.files(__name__).joinpath(f"{method}.yaml").read_text(encoding="utf-8")
    )
    if "base" in tree:
        base = _tree(tree.pop("base"))
        datasets = {name: {**base["datasets"][name], **entry} for name, entry in tree["datasets"].items()}
        tree = {**base, **tree, "datasets": datasets}
    return tree


def rows() -> Iterator[Row]:
    """Yield every row of every protocol."""
    for method in NAMES:
        yield from load(method).rows.values()


def _row(method: str, dataset: str, entry: Mapping[str, Any]) -> Row:
    background = entry.get("background")
    return Row(
        method,
        dataset,
        entry.get("mIoU"),
        {name: tuple(words) for name, words in entry.get("words", {}).items()},
        None if background is None else tuple(background),
        entry.get("settings", {}),
        entry.get("files", {}),
    )
