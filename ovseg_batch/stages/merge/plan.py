"""The plan of the stage that merges two methods. It imports no model library."""

from __future__ import annotations

import functools
from typing import Any

from ovseg_batch import datasets
from ovseg_batch.settings import Config, Label
from ovseg_batch.settings.readers import read_settings
from ovseg_batch.stages.base import ANSWER_STAGES, Resources, StagePlan, methods_of
from ovseg_batch.stages.plans import ClassifyPlan
from ovseg_batch.stages.resolved import Resolved

KINDS_FROM = "coco-stuff"  # the data set whose stuff decides the kind of labels that have none
THINGS_ALONE = ("detect",)  # methods that search for objects only, so that they say nothing about stuff


class MergePlan(StagePlan):
    """Keeps the annotations of every image, made of those of two methods. It reads no image and computes on the CPU."""

    name = "merge"
    resources = Resources(accelerator=False)
    columns = ClassifyPlan.columns

    @staticmethod
    def needs_of(config: Config) -> tuple[str, ...]:
        return tuple(ANSWER_STAGES[method] for method in methods_of(config))

    def __init__(self, run: Resolved) -> None:
        config = run.config
        self._settings, self._paint = config.merge, config.painting
        self._read = read_settings(config, self.name, "merge")
        self._kinds = {label.name: kind_of(label) for label in config.labels}
        self._methods = methods_of(config)
        self.needs = self.needs_of(config)

    def inputs(self) -> dict[str, Any]:
        return {"kinds": self._kinds, "merge": self._read, "paint": self._paint}


def kind_of(label: Label) -> str:
    """Return `thing` or `stuff`: the kind of a label, or, if that is `any`, what COCO-Stuff says of one of its words.

    A word that is no stuff of COCO-Stuff is a thing.
    """
    if label.kind != "any":
        return label.kind
    return "stuff" if any(word.casefold() in _stuff_words() for word in (label.name, *label.words)) else "thing"


@functools.cache
def _stuff_words() -> frozenset[str]:
    """Return the kinds of stuff of COCO-Stuff, without what follows a hyphen, as in `wall-brick`."""
    known = datasets.load(KINDS_FROM)
    names = {name.partition("-")[0] for name in known.classes if name not in known.things}
    return frozenset({*names, *(name.removesuffix("s") for name in names)})
