"""Definitions of labels from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovseg_batch.config import dump_config, load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.settings import Config
from ovseg_batch.settings.definitions import read_definitions


def write(folder: Path, text: str, name: str = "texts.txt") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def load(file: str, labels: str = "sky; cat: cat, feline") -> Config:
    return load_config(None, [f"definitions={file}"], {"labels": labels}, environment={})


def test_a_line_belongs_to_a_label_by_its_name_or_a_synonym(tmp_path: Path) -> None:
    file = write(tmp_path, "Feline >=a small animal\n\nsky >= the air: blue, above us \ndog >=barks\n")
    assert read_definitions(file) == {"feline": "a small animal", "sky": "the air: blue, above us", "dog": "barks"}
    assert [label.definition for label in load(file).labels] == ["the air: blue, above us", "a small animal"]


def test_the_settings_of_a_run_hold_the_texts_and_not_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "sky >= air\ncat >= animal\n")
    config = load(file)
    Path(file).unlink()
    kept = tmp_path / "config.yaml"
    kept.write_text(dump_config(config))
    assert config.definitions is None and load_config(kept, environment={}) == config


def test_a_definition_of_a_label_has_priority(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("labels: [{name: sky, definition: mine}, cat]\n")
    file = write(tmp_path, "cat >= animal\n")
    config = load_config(own, [f"definitions={file}"], environment={})
    assert [label.definition for label in config.labels] == ["mine", "animal"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sky >= air\n", "no line for 'cat'. Add lines 'NAME >= TEXT'"),
        ("sky >= air\ncta >= animal\n", "no line for 'cat'. Did you mean 'cta'?"),
        ("", "no line for 'sky', 'cat'"),
        ("sky >= air\ncat: animal\n", "line 2 of .* is 'cat: animal'. Write 'NAME >= TEXT'"),
        ("sky >=\n", "line 1"),
        (">= air\n", "line 1"),
        ("sky >= air\n\nSky >= more\n", "line 3 of .* defines 'Sky' again"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=expected.replace("?", r"\?")):
        load(write(tmp_path, text))


def test_many_missing_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no line for 'a1', 'a2', 'a3' and 2 more"):
        load(write(tmp_path, "sky >= air\n"), "a1, a2, a3, a4, a5")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"sky >= \xff\n")
    for name, expected in (
        ("none.txt", "there is no file"),
        ("latin.txt", "not UTF-8"),
        (".", "cannot read"),
        ("a\0b", "cannot read"),
        ("x" * 300, "cannot read"),
    ):
        with pytest.raises(UsageError, match=f"definitions: .*{expected}"):
            load_config(None, (), {"labels": "sky", "definitions": f"{tmp_path / name}"}, environment={})


@pytest.mark.parametrize("value", [3, ["a"], {"sky": "air"}])
def test_a_value_that_is_no_path_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="definitions"):
        load_config(None, (), {"labels": "sky", "definitions": value}, environment={})
