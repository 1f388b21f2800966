"""The prompts of a row: lists and texts, labels with commas, and names that are reserved."""

from __future__ import annotations

from typing import Any

import pytest

from ovseg_batch.errors import UsageError
from ovseg_batch.methods.vocabulary import Vocabulary

NAMES = ("sky", "grass", "table, round", "table", "[odd]")


def vocabulary(*names: str, background: tuple[str, ...] = ()) -> Vocabulary:
    return Vocabulary.build([(name, (name,), 0.0) for name in names], background)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (["sky", "grass"], {"sky", "grass"}),
        ('["sky", "grass"]', {"sky", "grass"}),
        ("sky, grass", {"sky", "grass"}),
        ("sky; grass\n", {"sky", "grass"}),
        ("sky,", {"sky"}),
        (" , sky , ,", {"sky"}),
        ('["table, round"]', {"table, round"}),
        ("table, round", {"table, round"}),
        ("sky, table, round", {"sky", "table, round"}),
        ("table, sky", {"table", "sky"}),
        ("[odd]", {"[odd]"}),
        ("[]", {*NAMES}),
        ([], {*NAMES}),
        (["", " "], {*NAMES}),
        (",", {*NAMES}),
        ("", {*NAMES}),
        (None, {*NAMES}),
    ],
)
def test_forms_of_prompts(prompts: str | list[str] | None, expected: set[str]) -> None:
    out = vocabulary(*NAMES).left_out(prompts)
    assert {name for channel, name in enumerate(NAMES) if channel not in out} == expected


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("Sky", r"'Sky' is none of the labels\. Did you mean 'sky'\?"),
        ('["GRASS"]', r"Did you mean 'grass'\?"),
        ("gras", r"Did you mean 'grass'\?"),
        ("zebra", r"'zebra' is none of the labels\.$"),
        ('{"a": 1}', "is none of the labels"),
        ("[1, 2]", "'1' is none of the labels"),
        (5, "prompts are 5, and not names of labels"),
    ],
)
def test_a_prompt_that_is_no_label(prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocabulary(*NAMES).left_out(prompts)


@pytest.mark.parametrize("name", ["background", "Background"])
def test_a_label_has_not_the_name_of_the_background(name: str) -> None:
    with pytest.raises(UsageError, match=rf"labels: '{name}' is the name of the class"):
        vocabulary(name, "grass", background=("water",))
    assert vocabulary(name, "grass").names == (name, "grass")
    assert vocabulary(name, "water", background=("water",)).names == (name, "water")
