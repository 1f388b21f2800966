"""The modes of an edit: what each does with the masks, and which settings it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class EditMode:
    """What an edit does with the masks of an image.

    Attributes:
        keeps: the masked pixels stay, unless `edit.drop` names labels. Otherwise they are changed.
        separable: it can write one file per mask.
        soft_edge: the edge of what it keeps can be soft.
        fills: it puts new pixels into the image; its region can be widened and feathered.
        generated: a generator computes these pixels.
        needs_prompt: the generator cannot paint without words.
        strength: of the noise at the start of the generator, where the settings have none.
        without_mask: value of `edit.on_empty` that `auto` means where labels are kept.
        unchanged: what a note calls images on which the edit has no effect.
        is_unchanged: the same, as the predicate of a warning.
    """

    keeps: bool = False
    separable: bool = False
    soft_edge: bool = False
    fills: bool = False
    generated: bool = False
    needs_prompt: bool = False
    strength: float = 1.0
    without_mask: Literal["copy", "skip", "fill"] = "copy"
    unchanged: str = "images unchanged"
    is_unchanged: str = "are unchanged"


#: value of `edit.mode` → what it does
EDIT_MODES = {
    "cutout": EditMode(keeps=True, separable=True, soft_edge=True, without_mask="skip"),
    "fill": EditMode(
        keeps=True,
        soft_edge=True,
        fills=True,
        without_mask="fill",
        unchanged="images unchanged or filled completely",
        is_unchanged="are unchanged or filled completely",
    ),
    "mask": EditMode(
        keeps=True, separable=True, soft_edge=True, unchanged="masks blank", is_unchanged="have a blank mask"
    ),
    "crop": EditMode(keeps=True, separable=True, without_mask="skip"),
    "erase": EditMode(soft_edge=True, fills=True),
    "remove": EditMode(fills=True, generated=True),
    "replace": EditMode(fills=True, generated=True, needs_prompt=True),
    "style": EditMode(fills=True, generated=True, needs_prompt=True, strength=0.6),
}


def modes_that(have: Callable[[EditMode], bool]) -> tuple[str, ...]:
    """Return the names of the modes that have a property."""
    return tuple(name for name, mode in EDIT_MODES.items() if have(mode))
