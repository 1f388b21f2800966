"""Which stage reads which key of the settings, and under which choice.

The fingerprint of a stage holds the keys that this table says it reads. The help of the settings shows the same table.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ovseg_batch.settings.attentions import SPLICED, WITH_DINO
from ovseg_batch.settings.edit_modes import EditMode, modes_that
from ovseg_batch.settings.tree import Config


@dataclass(frozen=True, slots=True)
class Readers:
    """What reads a key.

    Attributes:
        names: stages, or other parts of the program.
        choice: the key whose value decides whether it is read; empty: it always is.
        values: the values of `choice` under which it is read; empty: any but null.
    """

    names: str
    choice: str = ""
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.names} ({self.choice}: {', '.join(self.values) or 'not null'})" if self.choice else self.names

    def include(self, stage: str, config: Config) -> bool:
        """Return whether a stage reads the key under these settings."""
        if stage not in self.names.split(", "):
            return False
        if not self.choice:
            return True
        value = operator.attrgetter(self.choice)(config)
        return str(value).lower() in self.values if self.values else value is not None


POINTING = ("prompted", "guided", "trident")
PROMPTING = (*POINTING, "trident-map")


def _refine(*methods: str) -> Readers:
    return Readers("refine", "refine.method", methods)


def _edit(have: Callable[[EditMode], bool]) -> Readers:
    return Readers("edit", "edit.mode", modes_that(have))


GENERATED = _edit(lambda mode: mode.generated)
FILLING = _edit(lambda mode: mode.fills)


#: key or section → what reads it. A key without an entry has that of its section.
READERS = {
    "about": Readers("`ovseg-batch methods`"),
    "protocol": Readers("`labels: dataset:NAME`"),
    "method": Readers("the choice of the stages"),
    "labels": Readers("dense, refine, classify, sam3, settle, merge, edit"),
    "labels[].confusers": Readers("classify"),
    "labels[].kind": Readers("merge, panoptic exports"),
    "labels[].definition": Readers("dense"),
    "labels[].threshold": Readers("refine, classify, settle"),
    "definitions": Readers("labels[].definition"),
    "background": Readers("dense, refine, classify, sam3"),
    "paint": Readers("refine, classify, settle, merge"),
    "manifest": Readers("the list of images"),
    "clip": Readers("dense, embed, classify"),
    "dino": Readers("dense", "dense.attention", WITH_DINO),
    "owl": Readers("detect, classify"),
    "owl.precision": Readers("detect"),
    "sam": Readers("propose, encode, refine, detect"),
    "sam.cache": Readers("encode, refine", "refine.method", POINTING),
    "sam3": Readers("tokens, sam3"),
    "sam3.words_chunk": Readers("sam3"),
    "sam3.tile": Readers("tokens, sam3"),
    "sam3.floor": Readers("sam3"),
    "sam3.maps": Readers("sam3"),
    "sam3.mask": Readers("sam3"),
    "sam3.threshold": Readers("settle"),
    "sam3.nms": Readers("settle"),
    "sam3.contained": Readers("settle"),
    "sam3.output": Readers("settle"),
    "sam3.soft": Readers("settle", "sam3.output", ("semantic",)),
    "sam3.min_area": Readers("settle"),
    "dense": Readers("dense"),
    "dense.window": Readers("dense, refine"),
    "dense.stride": Readers("dense, refine"),
    "dense.view_weight": Readers("dense", "dense.views", ("itaclip",)),
    "dense.trident": Readers("dense", "dense.attention", (SPLICED,)),
    "dense.templates": Readers("dense, classify"),
    "dense.prompt_denoising": Readers("refine"),
    "dense.logit_scale": Readers("dense, refine"),
    "dense.prob_threshold": Readers("refine"),
    "dense.area_threshold": Readers("refine"),
    "dense.cache": Readers("dense, refine"),
    "propose": Readers("propose"),
    "propose.multimask": Readers("propose", "propose.multimask", ("false",)),
    "propose.masks": Readers("propose", "propose.masks"),
    "presence": Readers("refine"),
    "refine": Readers("refine"),
    "refine.pamr_at": Readers("refine", "refine.pamr_at", ("original",)),
    "refine.closing": Readers("refine", "refine.closing"),
    "refine.vote": _refine("prompted", "automatic"),
    "refine.tile": _refine(*POINTING),
    "refine.point": _refine("prompted", "guided"),
    "refine.min_distance": _refine("prompted"),
    "refine.min_confidence": _refine("guided"),
    "refine.min_region": _refine("guided", "trident", "trident-map"),
    "refine.predicted_iou": _refine("trident", "trident-map"),
    "refine.prompt_floor": _refine("trident-map"),
    "refine.same_object": _refine("guided"),
    "refine.max_points": _refine(*PROMPTING),
    "refine.bank": Readers("refine", "refine.bank"),
    "refine.bank_neighbours": Readers("refine", "refine.bank"),
    "refine.bank_weight": Readers("refine", "refine.bank"),
    "detect": Readers("classify"),
    "detect.boxes": Readers("detect"),
    "detect.objectness": Readers("detect"),
    "merge": Readers("merge"),
    "merge.things": Readers("the choice of the stages, merge"),
    "merge.iou": Readers("merge", "merge.rule", ("best", "average")),
    "classify": Readers("classify"),
    "classify.scorer": Readers("embed"),
    "classify.tuned": Readers("embed", "classify.scorer", ("mask-tokens",)),
    "classify.scales": Readers("embed", "classify.scorer", ("crops",)),
    "classify.outside": Readers("embed", "classify.scorer", ("crops",)),
    "classify.weights": Readers("classify", "classify.scorer", ("crops",)),
    "edit": Readers("edit"),
    "edit.apart": _edit(lambda mode: mode.separable),
    "edit.dilation": FILLING,
    "edit.feather": FILLING,
    "edit.shape": FILLING,
    "edit.alpha": _edit(lambda mode: mode.soft_edge),
    "edit.fill": _edit(lambda mode: mode.fills and not mode.generated),
    "edit.crop": Readers("edit", "edit.mode", ("crop",)),
    "edit.prompt": GENERATED,
    "edit.prompts": GENERATED,
    "edit.negative_prompt": GENERATED,
    "edit.seed": GENERATED,
    "edit.together": GENERATED,
    "inpaint": GENERATED,
    "inpaint.context": FILLING,
    "run": Readers("every stage"),
    "run.cpus_per_worker": Readers("the engine ray"),
    "run.gpus_per_worker": Readers("the engine ray"),
    "run.batch_size": Readers("dense, embed"),
    "run.point_chunk": Readers("propose, refine, detect"),
    "run.remote_private": Readers("stages that read images", "run.allow_remote", ("true",)),
    "run.remote_tries": Readers("stages that read images", "run.allow_remote", ("true",)),
    "run.remote_timeout": Readers("stages that read images", "run.allow_remote", ("true",)),
}


def readers(key: str) -> Readers:
    """Return what reads a key: its own entry, or that of the nearest section around it."""
    while key not in READERS:
        key = key.removesuffix("[]").rpartition(".")[0] or key.partition("[")[0]
    return READERS[key]


def read_settings(config: Config, stage: str, section: str) -> dict[str, Any]:
    """Return the keys of a section that a stage reads under these settings, with their values as JSON has them.

    Args:
        stage: its name.
        section: its dotted key, such as `refine`.
    """
    found = operator.attrgetter(section)(config)
    return _read(found.model_dump(mode="json"), type(found), section, stage, config)


def _read(values: dict[str, Any], model: type[BaseModel], section: str, stage: str, config: Config) -> dict[str, Any]:
    """Return those of a section's values that a stage reads."""
    read: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key, kind = f"{section}.{name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if below := _read(values[name], kind, key, stage, config):
                read[name] = below
        elif readers(key).include(stage, config):
            read[name] = values[name]
    return read
